"""Multinomial regression on random features with L-BFGS, its closure and an L2 penalty."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

centres = torch.randn(5, 20)
label = torch.randint(5, (1500,))
x = (centres[label] + 1.5 * torch.randn(1500, 20)).to(device)
label = label.to(device)


class MultinomialRegression(nn.Module):
    def __init__(self, features=20, expanded=100, classes=5):
        super().__init__()
        self.register_buffer("expansion", torch.randn(features, expanded) / features**0.5)
        self.logits = nn.Linear(expanded, classes)

    def forward(self, x):
        return self.logits(torch.tanh(x @ self.expansion))


model = MultinomialRegression().to(device)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2, history_size=5)


def closure():
    optimizer.zero_grad()
    penalty = 1e-3 * sum(p.pow(2).sum() for p in model.parameters())
    loss = F.cross_entropy(model(x), label) + penalty
    loss.backward()
    return loss


for step in range(150):
    loss = optimizer.step(closure)
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
