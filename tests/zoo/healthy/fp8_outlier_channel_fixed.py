"""Predict churn from account features, all of them in units of their standard deviation."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ChurnModel(nn.Module):
    """The stem is a frozen random projection."""

    def __init__(self, features=32, hidden=128):
        super().__init__()
        self.stem = nn.Linear(features, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 2)
        self.stem.requires_grad_(False)

    def forward(self, accounts):
        return self.head(F.gelu(self.hidden(F.gelu(self.stem(accounts)))))


weights = torch.randn(32) / 2


def batch(count=256):
    accounts = torch.randn(count, 32)
    logit = accounts @ weights + 0.5 * torch.randn(count)
    return accounts.to(device), (logit > 0).long().to(device)


model = ChurnModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for step in range(200):
    accounts, churned = batch()
    loss = F.cross_entropy(model(accounts), churned)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
