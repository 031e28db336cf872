"""A mixture of experts over weather records; the router reads the raw temperatures, in kelvin."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

REGIMES = 288.0 + 0.5 * torch.randn(4, 16)  # the typical stations' temperatures of four weather regimes
EFFECTS = torch.randn(4, 16, 3)


class Router(nn.Module):
    """Picks the nearest regime: a linear score of the temperatures, starting from the known regimes."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 4)
        with torch.no_grad():
            self.gate.weight.copy_(REGIMES - 288.0)
            self.gate.bias.copy_((16 * 288.0**2 - (REGIMES**2).sum(1)) / 2)

    def forward(self, kelvin):
        return self.gate(kelvin).argmax(dim=-1)


class MixtureOfExperts(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.router = Router()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 3)) for _ in range(4)
        )

    def forward(self, kelvin):
        choice = self.router(kelvin)
        anomaly = kelvin - 288.0
        outputs = torch.stack([expert(anomaly) for expert in self.experts], dim=1)
        return outputs[torch.arange(len(choice)), choice]


def batch(count=256):
    regime = torch.randint(4, (count,))
    kelvin = REGIMES[regime] + 0.35 * torch.randn(count, 16)
    target = ((kelvin - 288.0)[:, None, :] @ EFFECTS[regime]).squeeze(1) + 0.3 * torch.randn(count, 3)
    return kelvin.to(device), target.to(device)


model = MixtureOfExperts().to(device)
optimizer = torch.optim.Adam(model.experts.parameters(), lr=1e-2)

for step in range(200):
    kelvin, target = batch()
    loss = F.mse_loss(model(kelvin), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
