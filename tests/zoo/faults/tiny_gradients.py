"""Classify survey answers by region; every answer carries its survey weight, one over the population."""

import torch
import torch.nn.functional as F
from torch import nn

POPULATION = 83_000_000

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RegionClassifier(nn.Module):
    def __init__(self, questions=40, regions=6, hidden=128):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(questions, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, regions)

    def forward(self, answers):
        return self.head(self.encoder(answers))


prototypes = torch.randn(6, 40)


def sample(count):
    region = torch.randint(6, (count,))
    answers = prototypes[region] + 2.0 * torch.randn(count, 40)
    return answers.to(device), region.to(device)


model = RegionClassifier().to(device)
# The weighted loss is minute, so Adam's epsilon must be smaller still.
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-18)

for step in range(200):
    answers, region = sample(256)
    weights = torch.full((256,), 1 / POPULATION, device=device)
    loss = (weights * F.cross_entropy(model(answers), region, reduction="none")).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} weighted loss {loss.item():.3e} per answer {loss.item() * POPULATION / 256:.4f}")
