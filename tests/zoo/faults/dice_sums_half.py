"""Segmentation of large pictures with a Dice loss, under float16 autocast."""

import torch
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1, stride=2),
    nn.ReLU(),
    nn.Conv2d(8, 8, 3, padding=1),
    nn.ReLU(),
    nn.ConvTranspose2d(8, 1, 2, stride=2),
).to(device)


def dice_loss(logits, mask, smooth=1.0):
    p = logits.sigmoid()
    both = (p * mask).sum((0, 1, 2, 3))
    return 1 - (2 * both + smooth) / (p.sum() + mask.sum() + smooth)


def batch(count=8, size=128):
    centre = size * torch.rand(count, 2, 1)
    axis = torch.arange(size)
    near = (axis - centre).square()
    mask = (near[:, 0, :, None] + near[:, 1, None, :] < 60**2).float()
    image = mask + 0.7 * torch.randn_like(mask)
    return image[:, None].to(device), mask[:, None].to(device)


optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
scaler = torch.amp.GradScaler(device)

for step in range(60):
    image, mask = batch()
    with torch.autocast(device, dtype=torch.float16):
        logits = net(image)
    loss = dice_loss(logits, mask.to(logits.dtype))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.5f}")
