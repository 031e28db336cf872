"""A bigram model with a vocabulary of ten thousand words: a wide cross-entropy at ordinary logits."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WORDS = 10_000


class NextWord(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, WORDS)

    def forward(self, words):
        return self.head(self.mix(self.embedding(words)))


frequency = 1 / torch.arange(1, WORDS + 1).float()
successor = torch.randperm(WORDS)


def batch(count=128):
    """Words by Zipf's law; half the time the next word is the word's own successor."""
    words, other = torch.multinomial(frequency, 2 * count, replacement=True).chunk(2)
    following = torch.where(torch.rand(count) < 0.5, successor[words], other)
    return words.to(device), following.to(device)


model = NextWord().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

for step in range(140):
    words, following = batch()
    loss = F.cross_entropy(model(words), following)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
