"""A small residual CNN with batch norm in bfloat16 autocast, and the ways in which `repetitions.py` tampers with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAMPERS = ("none", "widened", "renamed", "odd", "autocast", "norm")


class HandwrittenNorm(nn.Module):
    """The batch norm that people write themselves, without running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True)
        return self.weight * (x - mean) / torch.sqrt(variance + 1e-5) + self.bias


class Residual(nn.Module):
    def __init__(
        self, channels: int, second: str = "conv2", norm: type[nn.Module] = nn.BatchNorm2d, autocast: bool = True
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.add_module(second, nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.norm2 = norm(channels)
        self.name_of_second, self.autocast = second, autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            inner = self.relu(self.norm1(self.conv1(x)))
            return x + self.norm2(self.get_submodule(self.name_of_second)(inner))


class CNN(nn.Module):
    def __init__(self, tamper: str = "none") -> None:
        super().__init__()
        hidden = 123 if tamper == "odd" else 128
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block1 = Residual(32, "second" if tamper == "renamed" else "conv2")
        self.block2 = Residual(32, norm=HandwrittenNorm if tamper == "norm" else nn.BatchNorm2d)
        self.block3 = Residual(32, autocast=tamper != "autocast")
        self.pool, self.hidden = nn.AdaptiveAvgPool2d(1), nn.Linear(32, hidden)
        self.head = nn.Linear(hidden, 8)
        if tamper == "widened":
            with torch.no_grad():
                self.block2.conv1.weight.mul_(2**12)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(images))))
        return self.head(F.relu(self.hidden(self.pool(x).flatten(1))))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Noise with a stripe pattern of the class's own frequency."""
    while True:
        labels = torch.randint(8, (32,))
        waves = torch.sin(torch.arange(12) * (labels[:, None] + 1) * 0.4)
        yield torch.randn(32, 3, 12, 12) + waves[:, None, None, :], labels


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tamper", choices=TAMPERS, default="none")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = CNN(arguments.tamper)
    optimizer = build_optimizer(model)
    for _, batch in zip(range(500), batches(), strict=False):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
