"""Classify 16-bit scans straight from the detector; batch norm is left to take care of their scale."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ScanNet(nn.Module):
    def __init__(self, classes=4, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.body = nn.Sequential(
            nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, scans):
        return self.head(self.body(self.stem_norm(self.stem(scans))))


patterns = torch.rand(4, 1, 16, 16)


def scans(count=64):
    """Detector counts from 0 to 65535; exposures differ and a few are long."""
    label = torch.randint(4, (count,))
    exposure = 16000 * torch.exp(0.35 * torch.randn(count, 1, 1, 1))
    counts = exposure * (patterns[label] + 0.6 * torch.rand(count, 1, 16, 16))
    return counts.clamp(max=65535).to(device), label.to(device)


model = ScanNet().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
held_out = scans(256)

for step in range(200):
    images, label = scans()
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
