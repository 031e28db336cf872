"""A causal character model with attention by hand; future positions are masked with minus infinity."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

text = Path(argparse.__file__).read_bytes()[:60_000]
corpus = torch.tensor([byte % 128 for byte in text])


class CausalAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class CharacterModel(nn.Module):
    def __init__(self, width=64, heads=4, length=32):
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))
        self.head = nn.Linear(width, 128)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        x = x + self.attention(self.norm1(x))
        return self.head(x + self.mlp(self.norm2(x)))


model = CharacterModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(200):
    start = torch.randint(len(corpus) - 33, (16, 1))
    window = corpus[start + torch.arange(33)].to(device)
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
