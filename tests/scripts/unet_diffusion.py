"""Denoising diffusion (DDPM) of 8x8 digits with a little U-Net."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

T = 200


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, cin, cout, temb):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time = nn.Linear(temb, cout)
        self.norm2 = nn.GroupNorm(4, cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class SelfAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.einsum("bct,bcs->bts", q * c**-0.25, k * c**-0.25).softmax(dim=-1)
        out = torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, h, w)
        return x + self.proj(out)


class UNet(nn.Module):
    def __init__(self, ch=16):
        super().__init__()
        temb = 4 * ch
        self.ch = ch
        self.time_mlp = nn.Sequential(nn.Linear(ch, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.stem = nn.Conv2d(1, ch, 3, padding=1)
        self.down1 = ResBlock(ch, ch, temb)
        self.downsample = nn.Conv2d(ch, ch, 3, stride=2, padding=1)
        self.down2 = ResBlock(ch, 2 * ch, temb)
        self.attn = SelfAttention(2 * ch)
        self.mid = ResBlock(2 * ch, 2 * ch, temb)
        self.upsample = nn.ConvTranspose2d(2 * ch, ch, 4, stride=2, padding=1)
        self.up1 = ResBlock(2 * ch, ch, temb)
        self.out = nn.Sequential(nn.GroupNorm(4, ch), nn.SiLU(), nn.Conv2d(ch, 1, 3, padding=1))

    def forward(self, x, t):
        temb = self.time_mlp(timestep_embedding(t, self.ch))
        h1 = self.down1(self.stem(x), temb)
        h2 = self.down2(self.downsample(h1), temb)
        h2 = self.mid(self.attn(h2), temb)
        h = torch.cat([F.interpolate(self.upsample(h2), size=h1.shape[-2:], mode="nearest"), h1], dim=1)
        return self.out(self.up1(h, temb))


class Diffusion:
    def __init__(self, device):
        betas = torch.linspace(1e-4, 0.04, T, device=device)
        self.betas = betas
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)

    def q_sample(self, x0, t, noise):
        a = self.alpha_bar[t][:, None, None, None]
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def loss(self, model, x0):
        t = torch.randint(0, T, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        return F.mse_loss(model(self.q_sample(x0, t, noise), t), noise)


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32, device=device).unsqueeze(1) / 8 - 1
    model = UNet().to(device)
    diffusion = Diffusion(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(240):
        batch = images[torch.randint(0, len(images), (32,), device=device)]
        loss = diffusion.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 40 == 0:
            print(f"step {step}: {loss.item():.4f}")


if __name__ == "__main__":
    main()
