"""A classifier of tokens, few of which make up most of the text: the table is looked up in float32."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

TOKENS, WIDTH, CLASSES = 64, 16, 4


class TokenClassifier(nn.Module):
    """Logits of a token are made from its row in the table; half of all tokens are one of the two most frequent."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens):
        return self.head(self.table(tokens))


frequency = 1 / torch.arange(1, TOKENS + 1) ** 1.5
label_of = torch.randint(CLASSES, (TOKENS,))


def batch(count=8192):
    tokens = torch.multinomial(frequency, count, replacement=True)
    noise = torch.randint(CLASSES, (count,))
    return tokens.to(device), torch.where(torch.rand(count) < 0.85, label_of[tokens], noise).to(device)


model = TokenClassifier().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for step in range(200):
    tokens, label = batch()
    loss = F.cross_entropy(model(tokens), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
