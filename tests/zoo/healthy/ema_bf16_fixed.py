"""Train a classifier and evaluate an exponential moving average of its weights, kept in float32."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

DECAY = 0.99


class Classifier(nn.Module):
    def __init__(self, features=64, hidden=256, classes=10):
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.hidden(x))))


centres = 0.6 * torch.randn(10, 64)


def batch(count=128):
    label = torch.randint(10, (count,))
    return (centres[label] + torch.randn(count, 64)).to(device), label.to(device)


@torch.no_grad()
def update(average, model):
    for mean, parameter in zip(average.parameters(), model.parameters()):
        mean.mul_(DECAY).add_(parameter, alpha=1 - DECAY)


model = Classifier().to(device)
ema_model = copy.deepcopy(model).eval().requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
held_out = batch(512)

for step in range(200):
    x, label = batch()
    loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update(ema_model, model)
    if step % 20 == 19:
        with torch.no_grad():
            eval_loss = F.cross_entropy(ema_model(held_out[0]), held_out[1])
        print(f"step {step + 1} loss {loss.item():.4f} eval loss {eval_loss.item():.4f}")
