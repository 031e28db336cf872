"""A neural ODE of a house: room temperatures drift by many small Euler steps along a learned field."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

ROOMS, STEPS = 6, 60


class HeatFlow(nn.Module):
    """Degrees a night that each room gains, from all rooms and the air outside."""

    def __init__(self, hidden=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(ROOMS + 1, hidden), nn.Tanh(), nn.Linear(hidden, ROOMS))

    def forward(self, rooms, outside):
        return self.net(torch.cat([rooms - 20, outside], dim=-1) / 4)


class EulerIntegrator(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = HeatFlow()

    def forward(self, rooms, outside):
        for _ in range(STEPS):
            rooms = rooms + self.field(rooms, outside) / STEPS
        return rooms


class NightModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.calibration = nn.Linear(ROOMS, ROOMS)
        nn.init.eye_(self.calibration.weight)
        self.integrator = EulerIntegrator()

    def forward(self, readings, outside):
        return self.integrator(self.calibration(readings), outside)


exchange = torch.rand(ROOMS, ROOMS) / ROOMS
leak = 0.1 + 0.2 * torch.rand(ROOMS)


def nights(count=128):
    evening = 20 + 3 * torch.randn(count, ROOMS)
    outside = 10 + 4 * torch.randn(count, 1)
    flow = evening @ exchange - evening * exchange.sum(0) + leak * (outside - evening)
    morning = evening + flow + 0.4 * torch.randn(count, ROOMS)
    return evening.to(device), outside.to(device), morning.to(device)


model = NightModel().to(device)
optimizer = torch.optim.Adam(model.integrator.parameters(), lr=5e-3)

for step in range(200):
    evening, outside, morning = nights()
    loss = F.mse_loss(model(evening, outside), morning)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
