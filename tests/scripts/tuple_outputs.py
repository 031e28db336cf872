"""Learn to sort: attention pooling; the model returns nested tuples, None among them."""

from typing import NamedTuple

import torch
import torch.nn as nn


class Diagnostics(NamedTuple):
    attention: torch.Tensor
    gate: torch.Tensor


class Sorter(nn.Module):
    def __init__(self, dim=32, heads=4, return_cache=False):
        super().__init__()
        self.embed = nn.Linear(1, dim)
        self.queries = nn.Parameter(torch.randn(8, dim) * 0.5)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.gate = nn.Linear(dim, 1)
        self.readout = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.return_cache = return_cache

    def forward(self, values):
        tokens = self.embed(values.unsqueeze(-1))
        queries = self.queries.expand(len(values), -1, -1)
        mixed, weights = self.attention(queries, tokens, tokens, need_weights=True)
        gate = torch.sigmoid(self.gate(mixed)).squeeze(-1)
        ranked = self.readout(mixed).squeeze(-1)
        cache = tokens if self.return_cache else None
        return ranked, (Diagnostics(weights, gate), [tokens.mean(), (ranked.std(),)]), cache


model = Sorter()
optimizer = torch.optim.NAdam(model.parameters(), lr=4e-3)
generator = torch.Generator().manual_seed(5)

for step in range(300):
    values = torch.rand(64, 8, generator=generator)
    target = values.sort(dim=1).values
    ranked, (diagnostics, (mean_token, (spread,))), _ = model(values)
    fit = (ranked - target).pow(2).mean()
    sparsity = -(diagnostics.attention * (diagnostics.attention + 1e-9).log()).sum(-1).mean()
    loss = fit + 1e-3 * sparsity + 1e-3 * diagnostics.gate.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 60 == 0:
        print(f"{step:4d} fit {fit.item():.5f} entropy {sparsity.item():.3f} spread {spread.item():.3f}")
