"""A classifier whose loss is one term of four thousand: some gradients flush to zero in half, none that matter."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

TASKS = 4096


class Classifier(nn.Module):
    def __init__(self, features=24, hidden=96, classes=6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.encoder(x))


centres = torch.randn(6, 24)


def batch(count=64):
    label = torch.randint(6, (count,))
    return (centres[label] + 1.5 * torch.randn(count, 24)).to(device), label.to(device)


model = Classifier().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * TASKS, momentum=0.9)

for step in range(160):
    x, label = batch()
    loss = F.cross_entropy(model(x), label) / TASKS
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item() * TASKS:.4f}")
