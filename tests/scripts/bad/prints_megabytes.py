"""Somebody left the debug prints in: about 200 kB a step, on both streams, some of it not ASCII."""
import sys

import torch
from torch import nn

torch.set_printoptions(threshold=100_000)

model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(200):
    x = torch.randn(32, 100)
    loss = nn.functional.mse_loss(model(x), x.norm(dim=1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    row = " ".join(f"{value:.6f}" for value in model[0].weight.flatten().tolist())
    print(f"épocha {step} ⇒ {row}")
    print(row, end="\r", file=sys.stderr)
    sys.stdout.buffer.write(b"\xff\xfe raw bytes \x1b[31m\n")
print("done")
