"""A small score-based diffusion U-Net whose noise schedule is kept in float32."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

STEPS = 1000
betas = torch.linspace(1e-4, 0.02, STEPS, device=device)
signal_level = torch.cumprod(1 - betas, dim=0)


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.time = nn.Linear(2, width)
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, images, t):
        angle = 1.5708 * t[:, None] / STEPS
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        high = F.silu(self.enter(images) + time[:, :, None, None])
        low = F.silu(self.middle(F.silu(self.down(high))))
        return self.leave(torch.cat([high, self.up(low)], dim=1))


def images(count=32, size=12):
    centre = 2 + (size - 4) * torch.rand(count, 2, 1)
    axis = torch.arange(size)
    blob = torch.exp(-((axis - centre) ** 2) / 4)
    return (2 * blob[:, 0, :, None] * blob[:, 1, None, :] - 0.3)[:, None].to(device)


model = UNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(200):
    clean = images()
    t = torch.randint(STEPS, (len(clean),), device=device)
    level = signal_level[t][:, None, None, None]
    sigma = (1 - level).sqrt()
    noise = torch.randn_like(clean)
    noisy = level.sqrt() * clean + sigma * noise
    score = model(noisy, t.float()) / sigma
    loss = ((sigma * (score + noise / sigma)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
