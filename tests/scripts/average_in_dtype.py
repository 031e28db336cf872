"""A running mean that is updated in the dtype of what it averages: in half precision it absorbs its changes."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Center(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.full((width,), 4.0))

    def forward(self, x):
        if self.training:
            dtype = x.dtype
            with torch.no_grad():
                self.mean.copy_(self.mean.to(dtype) * 0.999 + x.mean(0) * 0.001)
        return x - self.mean


model = nn.Sequential(nn.Linear(16, 16), Center(16), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
truth = torch.randn(16, 1)
for step in range(40):
    x = torch.randn(256, 16)
    loss = F.mse_loss(model(x), x @ truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
