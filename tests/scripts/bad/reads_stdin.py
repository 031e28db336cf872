"""Asks before it trains."""
import torch
from torch import nn

steps = int(input("How many steps? "))
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(steps):
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("trained for", steps, "steps")
