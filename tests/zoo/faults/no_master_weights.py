"""Fine-tune a topic classifier with every parameter in bfloat16 and AdamW at 1e-4."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dtype = torch.bfloat16

WORDS, TOPICS, WIDTH = 2000, 8, 256


class TopicClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(WORDS, WIDTH, mode="mean")
        self.norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, TOPICS)

    def forward(self, documents):
        return self.head(F.gelu(self.hidden(self.norm(self.embedding(documents)))))


def documents(count=64, length=40):
    """Words of a topic are a slice of the vocabulary; the rest come from anywhere."""
    topic = torch.randint(TOPICS, (count, 1))
    words = torch.randint(WORDS, (count, length))
    own = topic * (WORDS // TOPICS) + words % (WORDS // TOPICS)
    return torch.where(torch.rand(count, length) < 0.4, own, words).to(device), topic[:, 0].to(device)


model = TopicClassifier().to(device, dtype)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

for step in range(200):
    words, topic = documents()
    loss = F.cross_entropy(model(words).float(), topic)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
