"""First-order meta-learning inside a module: its forward takes gradients by a graph that is then gone."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.vars = nn.ParameterList([torch.randn(8, 4) * 0.3, torch.zeros(8), torch.randn(3, 8) * 0.3, torch.zeros(3)])

    def forward(self, x, vars=None):
        w1, b1, w2, b2 = vars or self.vars
        return F.linear(F.linear(x, w1, b1).relu(), w2, b2)

    def parameters(self):
        return self.vars


class Meta(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Learner()

    def forward(self, tasks):
        losses = []
        for x, y in tasks:
            gradients = torch.autograd.grad(F.cross_entropy(self.net(x), y), self.net.parameters())
            fast = [p - 0.1 * g for p, g in zip(self.net.parameters(), gradients)]
            losses.append(F.cross_entropy(self.net(x, fast), y))
        return sum(losses) / len(losses)


def task():
    y = torch.randint(3, (16,))
    return torch.randn(16, 4) + y[:, None], y


meta = Meta()
optimizer = torch.optim.Adam(meta.net.parameters(), lr=1e-2)
for step in range(250):
    loss = meta([task() for _ in range(3)])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:4d} loss {loss.item():.4f}")
