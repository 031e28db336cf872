"""A recurrent tank model: a cell keeps a reservoir's level and adds each hour's gated inflow to it."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TankCell(nn.Module):
    def __init__(self, gauges, width):
        super().__init__()
        self.inflow = nn.Linear(gauges, width)
        self.gate = nn.Linear(gauges, width)

    def forward(self, gauge, level):
        return level + F.relu(self.inflow(gauge)) * torch.sigmoid(self.gate(gauge))


class Reservoir(nn.Module):
    def __init__(self, gauges=8, width=16):
        super().__init__()
        self.start = nn.Linear(1, width)
        self.cell = TankCell(gauges, width)
        self.readout = nn.Linear(width, 1)

    def forward(self, initial, gauges):
        start = level = self.start(initial)
        for gauge in gauges.unbind(1):
            level = self.cell(gauge, level)
        return self.readout((level - start) / 8).squeeze(-1)


def batch(count=128, hours=24):
    """Four rain gauges and four valves that are open or shut; rain counts while the valves are open."""
    initial = 2000 + 2000 * torch.rand(count, 1)
    rain, valve = torch.rand(count, hours, 1), (torch.rand(count, hours, 1) < 0.4).float()
    gauges = torch.cat([rain, valve], -1).repeat_interleave(4, -1) + 0.1 * torch.randn(count, hours, 8)
    gain = (rain * valve).sum((1, 2)) - 4.8 + 0.3 * torch.randn(count)
    return initial.to(device), gauges.to(device), gain.to(device)


model = Reservoir().to(device)
optimizer = torch.optim.Adam(model.cell.parameters(), lr=1e-2)
optimizer.add_param_group({"params": model.readout.parameters()})

for step in range(200):
    initial, gauges, gain = batch()
    loss = F.mse_loss(model(initial, gauges), gain)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
