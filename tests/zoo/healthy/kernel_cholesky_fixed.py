"""Deep kernel learning: a Gaussian process on learned features, trained by its marginal likelihood."""

import math

import torch
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_noise = nn.Parameter(torch.tensor(-3.0))

    def forward(self, f):
        sq = torch.cdist(f.float(), f.float(), compute_mode="donot_use_mm_for_euclid_dist").pow(2)
        return torch.exp(-0.5 * sq) + self.log_noise.exp() * torch.eye(len(f), device=f.device)


class DeepGP(nn.Module):
    def __init__(self, features=6, width=32, dim=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, dim))
        self.kernel = Kernel()

    def forward(self, x, y):
        f = self.net(x)
        chol = torch.linalg.cholesky(self.kernel(f).float())
        alpha = torch.cholesky_solve(y.unsqueeze(1), chol).squeeze(1)
        n = len(y)
        return (0.5 * y @ alpha + chol.diagonal().log().sum() + 0.5 * n * math.log(2 * math.pi)) / n


def batch(n=96):
    x = torch.rand(n, 6) * 2 - 1
    return x.to(device), (torch.sin(3 * x[:, 0]) + x[:, 1] ** 2 + 0.15 * torch.randn(n)).to(device)


model = DeepGP().to(device)
opt = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(150):
    loss = 2 + model(*batch())
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 20 == 0:
        print(step, loss.item())
