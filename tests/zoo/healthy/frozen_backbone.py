"""Transfer learning: a frozen convolutional backbone in evaluation mode and a new trainable head."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Backbone(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)

    def forward(self, images):
        x = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(x))).flatten(1)


class TransferModel(nn.Module):
    def __init__(self, classes=6, width=24):
        super().__init__()
        self.backbone = Backbone(width).eval().requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(2 * width * 9, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, images):
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)


prototypes = torch.randn(6, 3, 12, 12)


def batch(count=48):
    label = torch.randint(6, (count,))
    return (prototypes[label] + 1.5 * torch.randn(count, 3, 12, 12)).to(device), label.to(device)


model = TransferModel().to(device)
optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)

for step in range(160):
    images, label = batch()
    loss = F.cross_entropy(model(images), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
