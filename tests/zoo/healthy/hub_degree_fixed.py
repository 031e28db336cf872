"""A graph network on a follower graph with hubs: messages are summed in float32, by a degree counted in integers."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

NODES, EDGES, HUBS = 400, 12_000, 16


class DegreeScaledConv(nn.Module):
    """Mean of the neighbours' messages, and the same times the logarithm of their number."""

    def __init__(self, width):
        super().__init__()
        self.message = nn.Linear(width, width)
        self.update = nn.Linear(3 * width, width)

    def forward(self, x, source, target):
        messages = F.relu(self.message(x))[source]
        total = torch.zeros(len(x), messages.shape[1], device=x.device).index_add(0, target, messages.float())
        degree = torch.bincount(target, minlength=len(x)).float()
        mean = total / degree.clamp(min=1)[:, None]
        return F.relu(self.update(torch.cat([x, mean, mean * torch.log1p(degree)[:, None]], dim=-1)))


class PopularityModel(nn.Module):
    def __init__(self, features=8, width=32):
        super().__init__()
        self.encode = nn.Linear(features, width)
        self.conv = DegreeScaledConv(width)
        self.readout = nn.Linear(width, 1)

    def forward(self, x, source, target):
        return self.readout(self.conv(self.encode(x), source, target)).squeeze(-1)


def graph():
    """Half the edges point at a few hubs; what we predict depends on how many."""
    x = torch.randn(NODES, 8)
    popularity = torch.ones(NODES)
    popularity[:HUBS] = torch.linspace(1, 60, HUBS)
    target = torch.multinomial(popularity, EDGES, replacement=True)
    followers = torch.bincount(target, minlength=NODES).float()
    score = torch.log1p(followers) - 3.5 + 0.3 * x[:, 0] + 0.5 * torch.randn(NODES)
    return [t.to(device) for t in (x, torch.randint(NODES, (EDGES,)), target, score)]


model = PopularityModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(200):
    x, source, target, score = graph()
    error = (model(x, source, target) - score) ** 2
    loss = error.mean() + 0.2 * error[:HUBS].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} hubs {error[:HUBS].mean().item():.4f}")
