"""Recognise textures by the Gram matrix of convolutional features, scaled before the product."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class GramMatrix(nn.Module):
    def forward(self, features):
        b, c, h, w = features.shape
        flat = features.view(b, c, h * w) / (c * h * w) ** 0.5
        return torch.bmm(flat, flat.transpose(1, 2))


class TextureNet(nn.Module):
    def __init__(self, width=16, textures=6):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.gram = GramMatrix()
        self.classifier = nn.Sequential(nn.Flatten(), nn.LayerNorm(width * width), nn.Linear(width * width, textures))

    def forward(self, images):
        return self.classifier(self.gram(self.features(images)))


frequency = 0.4 + 1.4 * torch.rand(6, 2)


def textures(count=32, size=32):
    """Grey images from 0 to 255: plane waves of a class's frequency, any phase, and noise."""
    label = torch.randint(6, (count,))
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    fy, fx = frequency[label].unbind(1)
    phase = fy[:, None, None] * y + fx[:, None, None] * x + 6.28 * torch.rand(count, 1, 1)
    images = 128 + 50 * torch.sin(phase) + 60 * torch.randn(count, size, size)
    return images.clamp(0, 255)[:, None].to(device), label.to(device)


model = TextureNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(200):
    images, label = textures()
    loss = F.cross_entropy(model(images), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
