"""A forecaster that leaves out batches whose gradients are too large, under float16 autocast with a scaler."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 50.0


class Forecaster(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, series):
        return self.head(self.conv(series.transpose(1, 2)))


def batch(count=64, length=30):
    phase, speed = 6.28 * torch.rand(count, 1), 0.2 + 0.3 * torch.rand(count, 1)
    series = torch.sin(phase + speed * torch.arange(length + 1)) + 0.05 * torch.randn(count, length + 1)
    return series[:, :-1, None].to(device), series[:, -1:].to(device)


model = Forecaster().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
scaler = torch.amp.GradScaler(device)
left_out = 0

for step in range(120):
    series, target = batch()
    with torch.autocast(device, dtype=torch.float16):
        loss = F.mse_loss(model(series), target)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    if norm > LIMIT:
        left_out += 1
        continue
    scaler.step(optimizer)
    scaler.update()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} left out {left_out}")
