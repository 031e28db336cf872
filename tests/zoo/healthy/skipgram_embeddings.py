"""Skip-gram with negative sampling: nearly all of the embedding gradients are exact zeros."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WORDS, TOPICS = 2000, 10


class SkipGram(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.contexts = nn.Embedding(WORDS, width)
        nn.init.normal_(self.words.weight, std=0.3)
        nn.init.normal_(self.contexts.weight, std=0.3)

    def forward(self, words, contexts):
        return (self.words(words)[:, None] @ self.contexts(contexts).transpose(1, 2)).squeeze(1)


def pairs(count=1024, negatives=5):
    """A word's true context comes from its own topic, the negatives from anywhere."""
    words = torch.randint(WORDS, (count,))
    positive = words % TOPICS + TOPICS * torch.randint(WORDS // TOPICS, (count,))
    contexts = torch.cat([positive[:, None], torch.randint(WORDS, (count, negatives))], dim=1)
    return words.to(device), contexts.to(device)


model = SkipGram().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
target = torch.zeros(1024, 6, device=device)
target[:, 0] = 1.0

for step in range(160):
    words, contexts = pairs()
    loss = F.binary_cross_entropy_with_logits(model(words, contexts), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
