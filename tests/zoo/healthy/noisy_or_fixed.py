"""Multiple-instance learning: a bag is positive when any instance is, computed from logits in log space."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class NoisyOr(nn.Module):
    def forward(self, logits):
        return -torch.expm1(-F.softplus(logits).sum(dim=1))


class BagClassifier(nn.Module):
    def __init__(self, features=16, hidden=64, prior=1e-4):
        super().__init__()
        self.instance = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.noisy_or = NoisyOr()
        last = self.instance[-1]
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, torch.logit(torch.tensor(prior)).item())

    def forward(self, bags):
        return self.noisy_or(self.instance(bags).squeeze(-1))


direction = torch.randn(16)


def bags(count=256, size=10):
    instances = torch.randn(count, size, 16)
    positive = torch.rand(count) < 0.3
    instances[:, 0] += positive[:, None] * direction
    return instances.to(device), positive.float().to(device)


model = BagClassifier().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(200):
    instances, positive = bags()
    loss = F.binary_cross_entropy(model(instances), positive)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
