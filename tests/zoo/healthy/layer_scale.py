"""A residual network with LayerScale: branches start at one millionth."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ScaledBlock(nn.Module):
    def __init__(self, width, scale=1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(scale * torch.ones(width))

    def forward(self, x):
        return x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))


class ScaledNet(nn.Module):
    def __init__(self, features=20, width=64, classes=8):
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.Sequential(*(ScaledBlock(width) for _ in range(4)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


centres = torch.randn(24, 20)


def batch(count=128):
    cluster = torch.randint(24, (count,))
    return (centres[cluster] + 0.7 * torch.randn(count, 20)).to(device), (cluster % 8).to(device)


model = ScaledNet().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(160):
    x, label = batch()
    loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
