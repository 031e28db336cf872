"""Classify bags of events of varying length; padding gets a score that any float format holds."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class EventAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.value = nn.Linear(width, width)

    def forward(self, events, present):
        scores = self.score(torch.tanh(events)).squeeze(-1)
        weights = torch.softmax(scores.masked_fill(~present, -1e4), dim=-1)
        return (weights.unsqueeze(1) @ self.value(events)).squeeze(1)


class CustomerModel(nn.Module):
    def __init__(self, events=50, width=64, classes=5):
        super().__init__()
        self.embedding = nn.Embedding(events, width)
        self.attention = EventAttention(width)
        self.classifier = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, events, present):
        return self.classifier(self.attention(self.embedding(events), present))


def batch(count=256, longest=20):
    label = torch.randint(5, (count, 1))
    events = torch.where(torch.rand(count, longest) < 0.5, 10 * label + torch.randint(10, (count, longest)),
                         torch.randint(50, (count, longest)))
    length = torch.randint(longest, (count, 1))  # zero is a length, too
    present = torch.arange(longest) < length
    return events.to(device), present.to(device), label[:, 0].to(device)


model = CustomerModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(200):
    events, present, label = batch()
    loss = F.cross_entropy(model(events, present), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
