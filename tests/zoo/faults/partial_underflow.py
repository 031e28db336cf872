"""A single-shot detector: one convolutional trunk, class and box heads at every cell, loss per anchor."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

CLASSES, CELLS, ANCHORS = 4, 8, 8732  # anchors of the full-size detector whose loss weights are kept


class Detector(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        )
        self.class_head = nn.Conv2d(2 * width, CLASSES, 3, padding=1)
        self.box_head = nn.Conv2d(2 * width, 2, 3, padding=1)

    def forward(self, images):
        features = self.trunk(images)
        return self.class_head(features), self.box_head(features)


def scenes(count):
    """Images with one bright blob a scene: its class is its brightness, its box the offset in its cell."""
    kind = torch.randint(1, CLASSES, (count,))
    centre = 2 + 28 * torch.rand(count, 2)
    grid = torch.arange(32.0)
    rows = torch.exp(-((grid - centre[:, :1]) ** 2) / 4)
    columns = torch.exp(-((grid - centre[:, 1:]) ** 2) / 4)
    images = kind[:, None, None] * rows[:, :, None] * columns[:, None, :] + 0.3 * torch.randn(count, 32, 32)
    cell = (centre // 4).long()
    labels = torch.zeros(count, CELLS, CELLS, dtype=torch.long)
    labels[torch.arange(count), cell[:, 0], cell[:, 1]] = kind
    return images[:, None].to(device), labels.to(device), (centre / 4 % 1).to(device), cell.to(device)


model = Detector().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-16)

for step in range(200):
    images, labels, offsets, cell = scenes(32)
    classes, boxes = model(images)
    found = boxes[torch.arange(32, device=device), :, cell[:, 0], cell[:, 1]]
    confidence = F.cross_entropy(classes, labels)
    loss = (confidence + F.smooth_l1_loss(found, offsets)) / ANCHORS
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.3e}")
