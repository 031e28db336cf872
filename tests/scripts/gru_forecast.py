from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

WINDOW = 48
HORIZON = 6


def make_series(length: int = 4000, seed: int = 7) -> np.ndarray:
    """A load curve: a daily and a weekly rhythm, a slow trend, autocorrelated noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    noise = np.zeros(length)
    for i in range(1, length):
        noise[i] = 0.8 * noise[i - 1] + rng.normal(scale=0.1)
    daily = np.sin(2 * math.pi * t / 24) + 0.3 * np.sin(4 * math.pi * t / 24 + 1)
    weekly = 0.5 * np.cos(2 * math.pi * t / 168)
    return (daily + weekly + 1e-4 * t + noise).astype(np.float32)


def windows(series: np.ndarray, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        starts = rng.integers(0, len(series) - WINDOW - HORIZON, size=batch_size)
        block = np.stack([series[s : s + WINDOW + HORIZON] for s in starts])
        yield torch.from_numpy(block[:, :WINDOW, None]), torch.from_numpy(block[:, WINDOW:])


class Forecaster(nn.Module):
    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, HORIZON)

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, -1, :]
        _, h = self.gru(x)
        return last + self.project(self.norm(h[-1]))


def evaluate(model: nn.Module, series: np.ndarray) -> float:
    model.eval()
    with torch.inference_mode():
        errors = [nn.functional.l1_loss(model(x), y).item() for x, y in windows(series, 64, 4, seed=1)]
    model.train()
    return float(np.mean(errors))


def train(steps: int = 250) -> nn.Module:
    series = make_series()
    fit, held_out = series[:3200], series[3200:]
    model = Forecaster()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, momentum=0.5)
    for step, (x, y) in enumerate(windows(fit, 32, steps, seed=0)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"{step=} loss={loss.item():.4f} held-out MAE={evaluate(model, held_out):.4f}")
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    train()
