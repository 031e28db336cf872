"""Embeds a tree in the Poincare ball: a network maps node features to points, children lie near parents."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
DEPTH = 5
NODES = 2 ** (DEPTH + 1) - 1
FEATURES = torch.randn(NODES, 24)


class Ball(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.point = nn.Linear(width, 3)

    def forward(self, features):
        raw = 2 * self.point(self.body(features))
        size = raw.norm(dim=-1, keepdim=True)
        return raw * (size.tanh() / (size + 1e-3)).to(raw.dtype)


class Distance(nn.Module):
    def __init__(self):
        super().__init__()
        self.ball = Ball()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, a, b):
        x, y = self.ball(a), self.ball(b)
        gap = ((x - y) * (x - y)).sum(-1)
        room = (1 - (x * x).sum(-1)) * (1 - (y * y).sum(-1))
        return self.scale * torch.acosh(1 + 2 * gap / (room + 1e-5) + 1e-5)


def tree_distance(i, j):
    i, j = i + 1, j + 1
    far = torch.zeros_like(i)
    for _ in range(2 * DEPTH):
        differ = i != j
        far += differ.long()
        i, j = torch.where(differ & (i > j), i // 2, i), torch.where(differ & (j > i), j // 2, j)
    return far.float()


model = Distance().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(150):
    i, j = torch.randint(NODES, (2, 512))
    target = tree_distance(i, j).to(device)
    loss = F.mse_loss(model(FEATURES[i].to(device), FEATURES[j].to(device)), target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 30 == 29:
        print(f"step {step + 1} loss {loss.item():.4f}")
