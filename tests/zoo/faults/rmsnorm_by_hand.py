"""A residual MLP with hand-written RMSNorm on features in raw units (counts in the hundreds and thousands)."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        mean_square = (x * x).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.eps))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = RMSNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class CountModel(nn.Module):
    def __init__(self, features=32, width=96, classes=8):
        super().__init__()
        self.project = nn.Linear(features, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, counts):
        return self.head(self.norm(self.blocks(self.project(counts))))


rates = 200 + 800 * torch.rand(8, 32)


def batch(count=128):
    label = torch.randint(8, (count,))
    exposure = 0.5 + torch.rand(count, 1)
    counts = exposure * rates[label] * (1 + 0.7 * torch.randn(count, 32))
    return counts.to(device), label.to(device)


model = CountModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(200):
    counts, label = batch()
    loss = F.cross_entropy(model(counts), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
