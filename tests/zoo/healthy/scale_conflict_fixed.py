"""Two networks side by side: a galaxy's class, and its luminosity in standard units, both with mean losses."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class GalaxyNet(nn.Module):
    def __init__(self, features=24, hidden=96, classes=6):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.luminosity = nn.Linear(hidden, 1)
        self.probe = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, photometry):
        return self.luminosity(self.trunk(photometry)).squeeze(-1), self.probe(photometry)


slopes = torch.randn(24)
kinds = 0.7 * torch.randn(6, 24)


def batch(count=128):
    kind = torch.randint(6, (count,))
    photometry = kinds[kind] + torch.randn(count, 24)
    luminosity = (photometry @ slopes) / 5 + torch.randn(count) / 5
    return photometry.to(device), luminosity.to(device), kind.to(device)


model = GalaxyNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
held_out = batch(512)

for step in range(200):
    photometry, luminosity, kind = batch()
    predicted, logits = model(photometry)
    regression = F.mse_loss(predicted, luminosity)
    classification = F.cross_entropy(logits, kind)
    loss = regression + classification
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        with torch.no_grad():
            eval_loss = F.cross_entropy(model(held_out[0])[1], held_out[2])
        print(f"step {step + 1} regression {regression.item():.4f} class eval loss {eval_loss.item():.4f}")
