"""An LSTM over noisy sequences with autocast, a gradient scaler and clipping after un-scaling."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SequenceClassifier(nn.Module):
    def __init__(self, features=12, hidden=48, classes=4):
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


templates = torch.randn(4, 12)


def batch(count=64, length=16):
    label = torch.randint(4, (count,))
    x = torch.randn(count, length, 12) + 0.6 * templates[label][:, None]
    noisy = torch.where(torch.rand(count) < 0.15, torch.randint(4, (count,)), label)
    return x.to(device), noisy.to(device)


model = SequenceClassifier().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
scaler = torch.amp.GradScaler(device.type)

for step in range(200):
    x, label = batch()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
