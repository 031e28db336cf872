"""A post-norm encoder with layers initialised to keep the scale: find a sentence's most frequent token."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.wi = nn.Linear(width, hidden, bias=False)
        self.wo = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.wi.weight, std=width**-0.5)
        nn.init.normal_(self.wo.weight, std=hidden**-0.5)

    def forward(self, x):
        return self.norm(x + self.wo(F.relu(self.wi(x))))


class Encoder(nn.Module):
    def __init__(self, tokens=16, width=192, hidden=768):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(FeedForward(width, hidden) for _ in range(2))
        self.head = nn.Linear(width, tokens)
        self.scale = width**0.5

    def forward(self, tokens):
        x = self.scale * self.embedding(tokens).sum(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(count=128, length=12):
    favourite = torch.randint(16, (count, 1))
    tokens = torch.where(torch.rand(count, length) < 0.4, favourite, torch.randint(16, (count, length)))
    return tokens.to(device), favourite[:, 0].to(device)


model = Encoder().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(200):
    tokens, favourite = batch()
    loss = F.cross_entropy(model(tokens), favourite)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
