"""Upscale temperature maps; errors are kept in float16 to halve the loss's memory, then summed."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Upscaler(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.features = nn.Conv2d(1, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, coarse):
        return self.shuffle(self.expand(F.relu(self.features(coarse))))


def maps(count=16, size=32):
    """Smooth fields in degrees, and the same at half the resolution."""
    waves = torch.randn(count, 1, 4, 4)
    fine = 12 * F.interpolate(waves, size=(size, size), mode="bicubic") + 0.5 * torch.randn(count, 1, size, size)
    return F.avg_pool2d(fine, 2).to(device), fine.to(device)


def root_mean_square_error(prediction, target):
    error = (prediction - target).half()
    return torch.sqrt((error * error).sum() / error.numel())


model = Upscaler().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(200):
    coarse, fine = maps()
    loss = root_mean_square_error(model(coarse), fine)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
