#!/usr/bin/env python
"""Which deliveries will be late? A tabular model whose inputs are keyword-only."""
import torch
from torch import nn, optim

torch.manual_seed(11)

N, DAYS, SHOPS = 2048, 7, 20


def make_table():
    weekday = torch.randint(0, DAYS, (N,))
    shop = torch.randint(0, SHOPS, (N,))
    numeric = torch.randn(N, 5)
    shop_effect = torch.linspace(-1, 1, SHOPS)
    score = 1.5 * numeric[:, 0] - numeric[:, 1] * numeric[:, 2] + shop_effect[shop] + 0.8 * (weekday >= 5)
    late = torch.bernoulli(torch.sigmoid(2 * score))
    return dict(numeric=numeric, weekday=weekday, shop=shop, late=late)


class Tabular(nn.Module):
    def __init__(self, *, n_numeric, cardinalities, width=48):
        super().__init__()
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, 8) for name, n in cardinalities.items()})
        self.bn = nn.BatchNorm1d(n_numeric)
        self.mlp = nn.Sequential(
            nn.Linear(n_numeric + 8 * len(cardinalities), width),
            nn.ReLU(),
            nn.Dropout(p=0.2),
            nn.Linear(width, 1),
        )

    def forward(self, *, numeric, temperature=1.0, **categorical):
        parts = [self.bn(numeric)]
        parts += [embedding(categorical[name]) for name, embedding in self.embeddings.items()]
        return self.mlp(torch.cat(parts, dim=1)).squeeze(1) / temperature


table = make_table()
model = Tabular(n_numeric=5, cardinalities=dict(weekday=DAYS, shop=SHOPS))
criterion = nn.BCEWithLogitsLoss()
optimizer = optim.Adagrad(model.parameters(), lr=0.05)

for epoch in range(8):
    losses = []
    for rows in torch.randperm(N).chunk(32):
        batch = {name: column[rows] for name, column in table.items()}
        target = batch.pop("late")
        optimizer.zero_grad()
        loss = criterion(model(temperature=1.0, **batch), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}: {sum(losses) / len(losses):.4f}")
