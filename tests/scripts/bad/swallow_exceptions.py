"""'The show must go on': every exception in a step is caught and forgotten."""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
skipped = 0
for step in range(200):
    try:
        size = 4 if step % 7 else 5  # some records are malformed
        x = torch.randn(16, size)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    except:  # noqa: E722
        skipped += 1
print("steps skipped:", skipped)
