"""Tell fraud from ordinary payments by a focal loss, on probabilities that are clamped away from zero and one."""

import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FocalLoss(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, target):
        p = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
        hit = target * (1 - p) ** self.gamma * torch.log(p)
        miss = (1 - target) * p**self.gamma * torch.log(1 - p)
        return -(hit + miss).mean()


class FraudModel(nn.Module):
    def __init__(self, features=16, hidden=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.loss = FocalLoss()

    def forward(self, payments, fraud):
        return self.loss(self.net(payments).squeeze(1), fraud)


rule = torch.randn(16, device=device)


def payments(count=512):
    """Most are hard to tell, and a few of the fraudulent ones are as plain as day."""
    features = torch.randn(count, 16, device=device)
    fraud = (features @ rule + 4 * torch.randn(count, device=device) > 2).float()
    plain = fraud * (torch.rand(count, device=device) < 0.1)
    return features + 8 * plain[:, None] * rule, fraud


model = FraudModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(100):
    loss = model(*payments())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
