"""Six small trainings, each a loop as a script would have it, that runs until precaudit stops it.

`Lesson` makes two of nothing to learn: weights that stand still, and targets that are drawn anew for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pydoc_data import topics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


@dataclass(frozen=True)
class Lesson:
    """`rate` multiplies every learning rate; `random_targets` leaves nothing to learn."""

    rate: float = 1.0
    random_targets: bool = False


LEARNING = Lesson()
Training = Callable[[Lesson], None]


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


@cache
def _text() -> torch.Tensor:
    text = "".join(topics.topics.values())
    return torch.tensor([min(ord(letter), 127) for letter in text[:100_000]])


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _classify(model: nn.Module, optimizer: torch.optim.Optimizer, lesson: Lesson, batch: int) -> None:
    images, labels = _digits()
    while True:
        chosen = torch.randint(len(images), (batch,))
        wanted = torch.randint(10, (batch,)) if lesson.random_targets else labels[chosen]
        _step(optimizer, F.cross_entropy(model(images[chosen]), wanted))


def regression(lesson: Lesson) -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2 * lesson.rate, fused=True)
    while True:
        x, noise = torch.randn(64, 16), torch.randn(64, 1)
        y = torch.sin(x[:, :2].sum(1, keepdim=True)) + x[:, 2:8].sum(1, keepdim=True)
        wanted = noise if lesson.random_targets else y + 0.5 * noise
        _step(optimizer, F.mse_loss(model(x), wanted))


def digits_mlp(lesson: Lesson) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    _classify(model, torch.optim.SGD(model.parameters(), 0.1 * lesson.rate, momentum=0.9, fused=True), lesson, 64)


def digits_cnn(lesson: Lesson) -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 10),
    )
    _classify(model, torch.optim.Adam(model.parameters(), 2e-3 * lesson.rate, fused=True), lesson, 24)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.second(x))


class _Letters(nn.Module):
    def __init__(self, width: int = 32, context: int = 16) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(128, width), nn.Embedding(context, width)
        self.block, self.norm, self.head = _Block(width), nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        x = self.letters(letters) + self.places(torch.arange(letters.shape[1]))
        return self.head(self.norm(self.block(x)))


def transformer(lesson: Lesson, context: int = 16) -> None:
    model, text = _Letters(context=context), _text()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3 * lesson.rate, fused=True)
    while True:
        starts = torch.randint(len(text) - context - 1, (8, 1))
        seen = text[starts + torch.arange(context + 1)]
        wanted = torch.randint(128, (8, context)) if lesson.random_targets else seen[:, 1:]
        _step(optimizer, F.cross_entropy(model(seen[:, :-1]).flatten(0, 1), wanted.flatten()))


class _Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0])


def gru(lesson: Lesson) -> None:
    model = _Forecast()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2 * lesson.rate, fused=True)
    while True:
        phase, pace = 6.3 * torch.rand(16, 1), 0.3 + 0.4 * torch.rand(16, 1)
        wave = torch.sin(phase + pace * torch.arange(13)) + 0.2 * torch.randn(16, 13)
        wanted = torch.randn(16, 12) if lesson.random_targets else wave[:, 1:]
        _step(optimizer, F.mse_loss(model(wave[:, :-1, None])[..., 0], wanted))


def restless(lesson: Lesson) -> None:
    """A learning rate near the edge of stability, where rounding errors grow."""
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))
    _classify(model, torch.optim.SGD(model.parameters(), 0.5 * lesson.rate, momentum=0.8, fused=True), lesson, 32)


TRAININGS: dict[str, Training] = {
    training.__name__: training for training in (regression, digits_mlp, digits_cnn, transformer, gru, restless)
}
