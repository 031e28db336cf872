"""Robust regression with a heavy-tailed likelihood; some targets are far out."""

import torch
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"


class StudentT(nn.Module):
    def __init__(self, nu=3.0):
        super().__init__()
        self.nu, self.log_scale = nu, nn.Parameter(torch.zeros(()))

    def forward(self, pred, target):
        r = (target.to(pred.dtype) - pred) / self.log_scale.exp().to(pred.dtype)
        tail = r.pow(2) / self.nu
        return ((self.nu + 1) / 2 * torch.log1p(tail)).mean() + self.log_scale


class Model(nn.Module):
    def __init__(self, features=10, width=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, 1))
        self.loss = StudentT()

    def forward(self, x, y):
        return self.loss(self.net(x).squeeze(-1), y)


weight = torch.randn(10)


def batch(n=256):
    x = torch.randn(n, 10)
    y = torch.tanh(x @ weight) * 2 + 0.2 * torch.randn(n)
    far = torch.rand(n) < 0.05
    return x.to(device), torch.where(far, 900 * torch.randn(n), y).clamp(-3000, 3000).to(device)


model = Model().to(device)
opt = torch.optim.Adam(model.parameters(), lr=4e-3)
for step in range(200):
    loss = model(*batch())
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 20 == 0:
        print(step, loss.item())
