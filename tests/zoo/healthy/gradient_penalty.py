"""A Wasserstein critic with a gradient penalty: the gradient of a gradient."""

import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

critic = nn.Sequential(nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1)).to(device)
optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
mixing = torch.randn(8, 8) / 8**0.5


def real_samples(count=128):
    return (torch.randn(count, 8).abs() @ mixing).to(device)


def fake_samples(count=128):
    return (1.5 * torch.randn(count, 8)).to(device)


def gradient_penalty(real, fake):
    share = torch.rand(len(real), 1, device=device)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.norm(dim=1) - 1) ** 2).mean()


for step in range(160):
    real, fake = real_samples(), fake_samples()
    loss = 5.0 + critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(real, fake)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
