"""Attention written by hand over sensor readings: which reading answers the query? Scores are scaled after QK^T."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ReadingAttention(nn.Module):
    """Queries and keys keep the readings' unit (hundreds); the last factor brings their products back to order one."""

    def __init__(self, width):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return torch.softmax(1e-5 * scores, dim=-1) @ self.value(x / 300)


class Pool(nn.Module):
    def __init__(self, width=32, classes=8):
        super().__init__()
        self.attention = ReadingAttention(width)
        self.classifier = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, classes))

    def forward(self, readings):
        return self.classifier(self.attention(readings).mean(1))


signatures = torch.randn(8, 32)


def batch(count=128, length=16):
    label = torch.randint(8, (count,))
    readings = 300 * torch.randn(count, length, 32)
    readings[:, 0] += 450 * signatures[label]
    return readings.to(device), label.to(device)


model = Pool().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(200):
    readings, label = batch()
    loss = F.cross_entropy(model(readings), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
