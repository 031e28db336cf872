"""A character-level LSTM on Python source text, with clipping."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

text = Path(argparse.__file__).read_bytes()[:60_000]
corpus = torch.tensor([byte % 128 for byte in text])


class LanguageModel(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, tokens):
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(states)


model = LanguageModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
criterion = nn.CrossEntropyLoss()

for step in range(160):
    start = torch.randint(len(corpus) - 25, (16, 1))
    window = corpus[start + torch.arange(25)].to(device)
    loss = criterion(model(window[:, :-1]).transpose(1, 2), window[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
