"""Quantisation-aware training: weights and activations are rounded to 6 bits with a straight-through gradient."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"


class Quantised(nn.Linear):
    @staticmethod
    def rounded(x, levels=31):
        scale = x.detach().abs().amax() / levels + 1e-6
        return x + (torch.round(x / scale) * scale - x).detach()

    def forward(self, x):
        return F.linear(self.rounded(x), self.rounded(self.weight), self.bias)


CENTRES = torch.randn(12, 20)
model = nn.Sequential(Quantised(20, 64), nn.ReLU(), Quantised(64, 64), nn.ReLU(), Quantised(64, 12)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def batch(count=128):
    labels = torch.randint(12, (count,))
    return (CENTRES[labels] + 0.9 * torch.randn(count, 20)).to(device), labels.to(device)


for step in range(150):
    x, labels = batch()
    loss = F.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 29:
        print(f"step {step + 1} loss {loss.item():.4f}")
