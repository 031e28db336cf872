"""Hand-written loss scaling that watches the loss, not the gradients, for overflow."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DigitNet(nn.Module):
    def __init__(self, classes=6):
        super().__init__()
        self.hidden1 = nn.Linear(100, 64)
        self.hidden2 = nn.Linear(64, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(F.relu(self.hidden2(F.relu(self.hidden1(images.flatten(1))))))


glyphs = torch.rand(6, 10, 10)


def batch(count=64):
    label = torch.randint(6, (count,))
    return (glyphs[label] - 0.5 + 0.5 * torch.randn(count, 10, 10)).to(device), label.to(device)


model = DigitNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scale, good_steps = 2.0**16, 0

for step in range(200):
    images, label = batch()
    with torch.autocast(device.type, dtype=torch.float16):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), label)
    optimizer.zero_grad()
    (loss * scale).backward()
    for parameter in model.parameters():
        parameter.grad /= scale
    if torch.isfinite(loss):
        optimizer.step()
        good_steps += 1
        if good_steps % 10 == 0:
            scale *= 2
    else:
        scale /= 2
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} scale {scale:.0f}")
