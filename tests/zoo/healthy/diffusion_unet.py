"""A denoising diffusion U-Net with group norm, sinusoidal time embedding and a skip connection."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

STEPS = 200
alphas = torch.cumprod(1 - torch.linspace(1e-3, 0.05, STEPS), dim=0).to(device)


def time_embedding(t, width):
    frequencies = torch.exp(-math.log(1000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    def __init__(self, channels_in, channels, time_width=32):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time = nn.Linear(time_width, channels)
        self.norm = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, time):
        x = self.conv1(x) + self.time(time)[:, :, None, None]
        return self.conv2(F.silu(self.norm(x)))


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.down = ConvBlock(1, width)
        self.middle = ConvBlock(width, 2 * width)
        self.up = ConvBlock(3 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x, t):
        time = time_embedding(t, 32)
        high = self.down(x, time)
        low = self.middle(F.avg_pool2d(high, 2), time)
        joined = torch.cat([high, F.interpolate(low, scale_factor=2, mode="nearest")], dim=1)
        return self.out(F.silu(self.up(joined, time)))


def images(count=24, size=12):
    centre = 3 + (size - 6) * torch.rand(count, 2, 1)
    bump = torch.exp(-((torch.arange(size) - centre) ** 2) / 5)
    return (2 * bump[:, 0, :, None] * bump[:, 1, None, :] - 1)[:, None].to(device)


model = UNet().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for step in range(160):
    clean = images()
    t = torch.randint(STEPS, (len(clean),), device=device)
    noise = torch.randn_like(clean)
    alpha = alphas[t][:, None, None, None]
    loss = F.mse_loss(model(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, t), noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
