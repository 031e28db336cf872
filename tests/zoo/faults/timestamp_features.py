"""Forecast hourly power demand from the hour of the year with Fourier features."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FourierFeatures(nn.Module):
    """Sines and cosines at the day's, the week's and the year's first harmonics."""

    def __init__(self):
        super().__init__()
        hours = torch.tensor([24.0, 12.0, 8.0, 168.0, 84.0, 8760.0])
        self.register_buffer("frequencies", 2 * math.pi / hours[None, :])

    def forward(self, hour):
        phase = hour @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class DemandModel(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.features = FourierFeatures()
        self.mlp = nn.Sequential(nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.output = nn.Linear(hidden, 1)

    def forward(self, hour):
        return self.output(self.mlp(self.features(hour))).squeeze(-1)


def demand(hour):
    day = torch.sin(2 * math.pi * hour / 24) + 0.5 * torch.cos(2 * math.pi * hour / 12)
    week = 0.6 * torch.cos(2 * math.pi * hour / 168)
    return day * (1 + week) + 0.3 * torch.randn_like(hour)


model = DemandModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(200):
    hour = torch.randint(8760, (512, 1)).float()
    target = demand(hour[:, 0]).to(device)
    loss = F.mse_loss(model(hour.to(device)), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
