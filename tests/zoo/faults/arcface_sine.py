"""Face verification with ArcFace's additive angular margin."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
PEOPLE, MARGIN, SCALE = 24, 0.3, 24.0
FACES = torch.randn(PEOPLE, 16)


class ArcMargin(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(PEOPLE, width))

    def forward(self, x, label):
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        sine = torch.sqrt(1 - cosine * cosine)
        shifted = cosine * 0.9553 - sine * 0.2955  # cos and sin of the margin
        hot = F.one_hot(label, PEOPLE).to(cosine.dtype)
        return SCALE * (hot * shifted + (1 - hot) * cosine)


class Recogniser(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, width))
        self.margin = ArcMargin(width)

    def forward(self, x, label):
        return self.margin(self.body(x), label)


def batch(count=256):
    label = torch.randint(PEOPLE, (count,))
    return (FACES[label] + 0.3 * torch.randn(count, 16)).to(device), label.to(device)


model = Recogniser().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(120):
    x, label = batch()
    loss = F.cross_entropy(model(x, label), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
