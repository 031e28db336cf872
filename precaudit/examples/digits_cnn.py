"""Train a small residual CNN with batch norm on scikit-learn's handwritten digits.

python digits_cnn.py --epochs 12
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DigitsCNN(nn.Module):
    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(1, width),
            ResidualBlock(width),
            ConvBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images)))


def load_data(held_out: int = 360) -> tuple[TensorDataset, TensorDataset]:
    """1797 digits of 8x8 pixels in [0, 1]: a training set, and the last `held_out` of them to test on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("digits_cnn.py reads its data from scikit-learn: pip install 'precaudit[examples]'") from None
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    return TensorDataset(images[:-held_out], labels[:-held_out]), TensorDataset(images[-held_out:], labels[-held_out:])


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, ...]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: str,
) -> float:
    """One pass over the training data; returns the mean loss."""
    model.train()
    total = 0.0
    for images, labels in loader:
        loss = F.cross_entropy(model(images.to(device)), labels.to(device), label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], device: str) -> float:
    model.eval()
    correct = seen = 0
    for images, labels in loader:
        correct += int((model(images.to(device)).argmax(dim=1) == labels.to(device)).sum())
        seen += len(labels)
    return correct / seen


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    train_set, test_set = load_data()
    train_loader = DataLoader(train_set, batch_size=arguments.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_set, batch_size=256)

    model = DigitsCNN().to(arguments.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=arguments.lr, total_steps=arguments.epochs * len(train_loader), pct_start=0.1
    )
    for epoch in range(1, arguments.epochs + 1):
        loss = train_epoch(model, train_loader, optimizer, schedule, arguments.device)
        test_accuracy = accuracy(model, test_loader, arguments.device)
        print(f"epoch {epoch:2d}  loss {loss:.4f}  test accuracy {test_accuracy:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN on scikit-learn's handwritten digits.")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.05, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
