"""Large-batch training one example at a time: each micro-batch's gradient is added to a float32 buffer."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

FEATURES, MICRO_BATCHES = 24, 512


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.output(x).squeeze(-1)


slope = torch.randn(FEATURES)


def example():
    x = 1.0 + 0.3 * torch.randn(1, FEATURES)
    return x.to(device), (20.0 + x @ slope + torch.randn(1)).to(device)


model = Regressor().to(device, torch.bfloat16)
master = [p.detach().float().clone() for p in model.parameters()]
optimizer = torch.optim.SGD(master, lr=1e-3, momentum=0.9)

for step in range(120):
    total = 0.0
    for copy in master:
        copy.grad = torch.zeros_like(copy)
    for _ in range(MICRO_BATCHES):
        x, y = example()
        loss = F.mse_loss(model(x.bfloat16()).float(), y) / MICRO_BATCHES
        loss.backward()
        for parameter, copy in zip(model.parameters(), master):
            copy.grad += parameter.grad.float()
            parameter.grad = None
        total += loss.item()
    optimizer.step()
    with torch.no_grad():
        for parameter, copy in zip(model.parameters(), master):
            parameter.copy_(copy)
    print(f"step {step + 1} loss {total:.4f}")
