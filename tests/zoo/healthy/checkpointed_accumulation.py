"""Activation checkpointing, four micro-batches a step, and clipping of the accumulated gradient."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

MICRO_BATCHES = 4


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class CheckpointedNet(nn.Module):
    def __init__(self, features=16, width=48, classes=6):
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


centres = torch.randn(6, 16)


def batch(count=48):
    label = torch.randint(6, (count,))
    return (centres[label] + 1.3 * torch.randn(count, 16)).to(device), label.to(device)


model = CheckpointedNet().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(130):
    optimizer.zero_grad()
    for _ in range(MICRO_BATCHES):
        x, label = batch()
        loss = F.cross_entropy(model(x), label) / MICRO_BATCHES
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item() * MICRO_BATCHES:.4f}")
