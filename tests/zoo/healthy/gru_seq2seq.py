"""Sequence to sequence with GRU cells and teacher forcing: shift every symbol of a sequence by one, with some noise."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SYMBOLS, LENGTH = 12, 6


class Seq2Seq(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRUCell(width, width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, source, target):
        _, state = self.encoder(self.embedding(source))
        state, logits = state[0], []
        previous = torch.full_like(target[:, 0], SYMBOLS)
        for position in range(target.shape[1]):
            state = self.decoder(self.embedding(previous), state)
            logits.append(self.head(state))
            previous = target[:, position]
        return torch.stack(logits, dim=1)


def batch(count=96):
    walk = torch.randint(SYMBOLS, (count, 1)) + torch.arange(LENGTH) * torch.randint(1, 3, (count, 1))
    source = walk % SYMBOLS
    noise = torch.randint(SYMBOLS, (count, LENGTH))
    target = torch.where(torch.rand(count, LENGTH) < 0.1, noise, (source + 1) % SYMBOLS)
    return source.to(device), target.to(device)


model = Seq2Seq().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(160):
    source, target = batch()
    loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
