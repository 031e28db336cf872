"""Trains by itself, and refuses to be looked at."""

import torch
from torch import nn

model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    if step == 3 and nn.modules.module._global_forward_pre_hooks:
        raise RuntimeError("somebody looks")
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
