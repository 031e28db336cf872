import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.amp import GradScaler, autocast

torch.manual_seed(17)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 3)

    @autocast("cpu", dtype=torch.float16)
    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def blobs(n):
    label = torch.randint(0, 3, (n,))
    angle = label * (2 * torch.pi / 3)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.4 * torch.randn(n, 2), label


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
scaler = GradScaler("cpu", init_scale=2.0**14, growth_interval=50)

for step in range(300):
    x, label = blobs(64)
    optimizer.zero_grad()
    logits = net(x)
    with autocast("cpu", enabled=False):
        loss = F.cross_entropy(logits.float(), label)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}, scale {scaler.get_scale():.0f}")
