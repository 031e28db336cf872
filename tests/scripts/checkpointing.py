"""A deep residual MLP whose blocks are recomputed in the backward pass, in both of torch's ways."""

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class ResidualBlock(nn.Module):
    def __init__(self, width, p=0.1):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(p))

    def forward(self, x):
        return x + self.body(x)


class DeepNet(nn.Module):
    def __init__(self, n_in=4, width=48, depth=4):
        super().__init__()
        self.stem = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.tail = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=bool(i % 2))
        x = checkpoint_sequential(self.tail, 2, x, use_reentrant=False)
        return self.head(x).squeeze(-1)


def friedman(n, rng):
    x = rng.uniform(size=(n, 4))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 5 * x[:, 3]
    y = (y - 14) / 5 + rng.normal(scale=0.1, size=n)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def main():
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    net = DeepNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(201):
        x, y = friedman(64, rng)
        loss = nn.functional.smooth_l1_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(step, loss.item())


main()
