"""A small residual network with batch norm, evaluated on held-out images every twenty steps."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + x)


class SmallResNet(nn.Module):
    def __init__(self, classes=5, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(width), nn.MaxPool2d(2), ResidualBlock(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


prototypes = torch.randn(5, 3, 4, 4)


def batch(count=32):
    label = torch.randint(5, (count,))
    images = F.interpolate(prototypes[label], size=(12, 12)) + 3.0 * torch.randn(count, 3, 12, 12)
    return images.to(device), label.to(device)


model = SmallResNet().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
held_out = batch(128)

for step in range(160):
    images, label = batch()
    loss = F.cross_entropy(model(images), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        model.eval()
        with torch.no_grad():
            eval_loss = F.cross_entropy(model(held_out[0]), held_out[1])
        model.train()
        print(f"step {step + 1} loss {loss.item():.4f} eval loss {eval_loss.item():.4f}")
