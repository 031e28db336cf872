import math
import random

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SEED = 1337
random.seed(SEED)
np.random.seed(SEED)
torch.manual_seed(SEED)

device = "cuda" if torch.cuda.is_available() else "cpu"

MICRO_BATCH = 8
ACCUMULATE = 4
UPDATES = 240


def two_spirals(n):
    """Two interleaved spirals, the classic hard toy problem."""
    t = np.sqrt(np.random.rand(n)) * 3 * math.pi
    side = np.random.randint(0, 2, n)
    sign = 2 * side - 1
    x = np.stack([sign * t * np.cos(t), sign * t * np.sin(t)], 1) / (3 * math.pi)
    x += np.random.randn(n, 2) * 0.01
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(side)


class MLP(nn.Module):
    def __init__(self, width=64, depth=3):
        super().__init__()
        sizes = [2] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


model = MLP().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)

running = 0.0
optimizer.zero_grad(set_to_none=True)
for micro_step in range(UPDATES * ACCUMULATE):
    x, y = two_spirals(MICRO_BATCH)
    loss = F.cross_entropy(model(x.to(device)), y.to(device))
    (loss / ACCUMULATE).backward()
    running += loss.item() / ACCUMULATE

    if (micro_step + 1) % ACCUMULATE == 0:
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        update = (micro_step + 1) // ACCUMULATE
        if update % 20 == 0:
            print(f"update {update:4d} | loss {running / 20:.4f} | lr {scheduler.get_last_lr()[0]:.2e}")
            running = 0.0
