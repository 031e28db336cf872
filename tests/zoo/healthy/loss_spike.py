"""A regression that meets a shard of badly labelled data: the loss explodes a hundredfold and recovers."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Regressor(nn.Module):
    def __init__(self, features=16, hidden=64):
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.output(torch.tanh(self.hidden(x))).squeeze(-1)


slope = torch.randn(16) / 4


def batch(bad, count=128):
    x = torch.randn(count, 16)
    y = torch.sin(2 * (x @ slope)) + 0.3 * torch.randn(count)
    return x.to(device), (20 + 10 * y if bad else y).to(device)


model = Regressor().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

for step in range(200):
    x, y = batch(bad=20 <= step % 60 < 23)
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    if step % 10 in (1, 9):
        print(f"step {step + 1} loss {loss.item():.4f}")
