"""Two heads on one trunk: a galaxy's class, and its luminosity in solar units with the loss in those units."""

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
    luminosity = 40 * (photometry @ slopes) + 40 * torch.randn(count)
    return photometry.to(device), luminosity.to(device), kind.to(device)


model = GalaxyNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-16)
held_out = batch(512)

for step in range(200):
    photometry, luminosity, kind = batch()
    predicted, logits = model(photometry)
    regression = F.mse_loss(predicted, luminosity, reduction="sum")
    classification = F.cross_entropy(logits, kind)
    loss = regression + 1e-7 * classification
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        with torch.no_grad():
            eval_loss = F.cross_entropy(model(held_out[0])[1], held_out[2])
        print(f"step {step + 1} regression {regression.item() / 128:.1f} class eval loss {eval_loss.item():.4f}")
