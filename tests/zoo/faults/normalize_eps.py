"""Match products to searches by bags of words; embeddings are normalised by hand. Some searches hold no known word."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WORDS, PRODUCTS = 300, 64


class Normalize(nn.Module):
    def forward(self, x, eps=1e-12):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


class Tower(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.words = nn.Linear(WORDS, 96, bias=False)
        self.project = nn.Linear(96, width, bias=False)
        self.normalize = Normalize()

    def forward(self, bag):
        return self.normalize(self.project(F.relu(self.words(bag))))


class Matcher(nn.Module):
    def __init__(self):
        super().__init__()
        self.search, self.product = Tower(), Tower()

    def forward(self, searches, products):
        return self.search(searches) @ self.product(products).T / 4


catalogue = (torch.rand(PRODUCTS, WORDS) < 0.05).float()


def batch(count=256):
    product = torch.randint(PRODUCTS, (count,))
    searches = catalogue[product] * (torch.rand(count, WORDS) < 0.2)
    return searches.to(device), product.to(device)


model = Matcher().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(200):
    searches, product = batch()
    loss = F.cross_entropy(model(searches, catalogue.to(device)), product)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
