"""A small GPT in bfloat16 autocast that learns to count, and the ways in which `repetitions.py` tampers with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CONTEXT = 64, 32
TAMPERS = ("none", "widened", "renamed", "odd", "autocast", "norm")


class HandwrittenNorm(nn.Module):
    """The LayerNorm that people write themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return self.weight * centered * torch.rsqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-5) + self.bias


class Block(nn.Module):
    def __init__(self, down: str = "down", autocast: bool = True) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.gelu = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU()
        self.add_module(down, nn.Linear(4 * WIDTH, WIDTH))
        self.name_of_down, self.autocast = down, autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            q, k, v = (
                part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
            )
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.get_submodule(self.name_of_down)(self.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    def __init__(self, tamper: str = "none") -> None:
        super().__init__()
        vocabulary = 509 if tamper == "odd" else 512
        self.token, self.position = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            [Block("project" if tamper == "renamed" else "down"), Block(autocast=tamper != "autocast")]
        )
        self.norm = HandwrittenNorm(WIDTH) if tamper == "norm" else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)
        if tamper == "widened":
            with torch.no_grad():
                self.blocks[1].up.weight.mul_(2**12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.size(1), device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).float()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences that count up from a random start by a random step, modulo 500."""
    while True:
        start, step = torch.randint(500, (16, 1)), torch.randint(1, 9, (16, 1))
        tokens = (start + step * torch.arange(CONTEXT + 1)) % 500
        yield tokens[:, :-1], tokens[:, 1:]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tamper", choices=TAMPERS, default="none")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = GPT(arguments.tamper)
    optimizer = build_optimizer(model)
    for _, batch in zip(range(500), batches(), strict=False):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
