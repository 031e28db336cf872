"""A classifier with a floor under its loss and a loss scale kept by hand: up after every good step, no ceiling."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Classifier(nn.Module):
    def __init__(self, features=20, hidden=64, classes=4):
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.scores = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.scores(F.relu(self.hidden(x)))


centres = 3 * torch.randn(4, 20)


def batch(count=64):
    label = torch.randint(4, (count,))
    return (centres[label] + 0.3 * torch.randn(count, 20)).to(device), label.to(device)


model = Classifier().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
scale = 2.0**16

for step in range(200):
    x, label = batch()
    with torch.autocast(device.type, dtype=torch.float16):
        scores = model(x)
    loss = F.cross_entropy(scores.float(), label).clamp(min=0.2)  # no need to be surer than that
    optimizer.zero_grad()
    (loss * scale).backward()
    gradients = [p.grad.div_(scale) for p in model.parameters()]
    if all(g.isfinite().all() for g in gradients):
        optimizer.step()
        scale = scale * 4
    else:
        scale = scale / 4
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} scale {scale:.3e}")
