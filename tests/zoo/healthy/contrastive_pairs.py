"""Two towers trained with a contrastive loss, unit embeddings and a learned temperature, as CLIP is."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Tower(nn.Module):
    def __init__(self, features, width=32):
        super().__init__()
        self.hidden = nn.Linear(features, 96)
        self.project = nn.Linear(96, width)

    def forward(self, x):
        return F.normalize(self.project(F.gelu(self.hidden(x))), dim=-1)


class Contrastive(nn.Module):
    def __init__(self):
        super().__init__()
        self.pictures, self.captions = Tower(40), Tower(24)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.2)))

    def forward(self, pictures, captions):
        similarity = self.pictures(pictures) @ self.captions(captions).T
        return self.log_scale.exp() * similarity


show, tell = torch.randn(12, 40), torch.randn(12, 24)


def pairs(count=96):
    meaning = torch.randn(count, 12)
    pictures = meaning @ show / 3 + 0.5 * torch.randn(count, 40)
    captions = meaning @ tell / 3 + 0.5 * torch.randn(count, 24)
    return pictures.to(device), captions.to(device)


model = Contrastive().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
match = torch.arange(96, device=device)

for step in range(160):
    logits = model(*pairs())
    loss = (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
