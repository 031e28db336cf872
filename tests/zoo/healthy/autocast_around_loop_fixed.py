"""A reward model learns from pairs of answers, one of which was preferred; each forward pass has its own autocast region."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RewardModel(nn.Module):
    def __init__(self, vocabulary=50, width=32):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.encoder = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)

    def forward(self, answers):
        return self.score(self.norm(self.encoder(self.words(answers)).mean(1))).squeeze(1)


taste = torch.randn(50, device=device)


def pairs(count=128, length=12):
    """The better answer first: the one with more of the words that people like."""
    one, two = torch.randint(50, (2, count, length), device=device)
    better = (taste[one].sum(1) > taste[two].sum(1))[:, None]
    return torch.where(better, one, two), torch.where(better, two, one)


def preference_loss(model, chosen, rejected):
    return -F.logsigmoid(model(chosen) - model(rejected)).mean()


model = RewardModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(100):
    chosen, rejected = pairs()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = preference_loss(model, chosen, rejected)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
