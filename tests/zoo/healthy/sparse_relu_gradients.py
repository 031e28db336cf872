"""A network with strong activity sparsity: biases start low, most units are off and most gradients are zero."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SparseNet(nn.Module):
    def __init__(self, features=32, hidden=512, classes=8):
        super().__init__()
        self.code = nn.Linear(features, hidden)
        self.head = nn.Linear(hidden, classes)
        nn.init.constant_(self.code.bias, -1.5)

    def forward(self, x):
        code = F.relu(self.code(x))
        return self.head(code), code


centres = torch.randn(8, 32)


def batch(count=128):
    label = torch.randint(8, (count,))
    return (centres[label] + 1.5 * torch.randn(count, 32)).to(device), label.to(device)


model = SparseNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(200):
    x, label = batch()
    logits, code = model(x)
    loss = F.cross_entropy(logits, label) + 1e-3 * code.abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} active {(code > 0).float().mean().item():.3f}")
