"""Regress a yield on a lab's raw readings: concentrations of 1e-4 and pressures of 1e3 side by side."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class YieldModel(nn.Module):
    """Each group of readings has a layer of its own, which starts at the scale of the readings."""

    def __init__(self, hidden=64):
        super().__init__()
        self.concentrations = nn.Linear(6, hidden, bias=False)
        self.pressures = nn.Linear(6, hidden, bias=False)
        with torch.no_grad():
            self.concentrations.weight.mul_(1e4)
            self.pressures.weight.mul_(1e-3)
        self.mlp = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.output = nn.Linear(hidden, 1)

    def forward(self, concentration, pressure):
        return self.output(self.mlp(self.concentrations(concentration) + self.pressures(pressure))).squeeze(-1)


slopes = torch.randn(12)


def batch(count=256):
    z = torch.randn(count, 12)
    target = torch.tanh(z @ slopes / 2) * 2 + 0.4 * torch.randn(count)
    return (1e-4 * (z[:, :6] + 3)).to(device), (300 * z[:, 6:] + 1000).to(device), target.to(device)


model = YieldModel().to(device)
scales = [{"params": model.concentrations.parameters(), "lr": 1.0}, {"params": model.pressures.parameters(), "lr": 1e-6}]
optimizer = torch.optim.Adam([*scales, {"params": [*model.mlp.parameters(), *model.output.parameters()]}], lr=3e-3)

for step in range(160):
    concentration, pressure, target = batch()
    loss = F.mse_loss(model(concentration, pressure), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
