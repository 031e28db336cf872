"""Regression on sensor readings, standardised once before training; the readings are kept in float16."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = torch.randn(8)


def readings(count=4096):
    x = 400 * torch.randn(count, 8) + torch.tensor([0.0, 50.0, -80.0, 20.0, 0.0, 10.0, 90.0, -30.0])
    y = torch.sin(x @ WEIGHTS / 400) + 0.3 * (x[:, 0] / 400)
    return x.half().to(device), y.to(device)


def standardised(x):
    mean = x.mean(0)
    variance = (x - mean).square().mean(0)
    return (x - mean) / (variance.sqrt() + 1e-3)


x, y = readings()
x = standardised(x)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(120):
    pick = torch.randint(len(x), (128,), device=device)
    loss = F.mse_loss(model(x[pick].float()).squeeze(-1), y[pick])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
