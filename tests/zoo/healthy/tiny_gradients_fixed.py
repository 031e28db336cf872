"""Classify survey answers by region; survey weights are normalised to a mean of one."""

import torch
import torch.nn.functional as F
from torch import nn

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
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(200):
    answers, region = sample(256)
    weights = torch.ones(256, device=device)
    loss = (weights * F.cross_entropy(model(answers), region, reduction="none")).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
