"""A classifier with a running average of its weights for evaluation."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
CENTRES = torch.randn(10, 24)
DECAY = torch.tensor(0.9985, dtype=torch.bfloat16, device=device)


def batch(count=64):
    labels = torch.randint(10, (count,))
    return (CENTRES[labels] + torch.randn(count, 24)).to(device), labels.to(device)


model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
average = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
held_out = batch(1024)

for step in range(200):
    x, labels = batch()
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters()):
            slow.copy_(DECAY * slow + (1 - DECAY) * fast)
    if step % 20 == 19:
        with torch.no_grad():
            held = F.cross_entropy(average(held_out[0]), held_out[1])
        print(f"step {step + 1} loss {loss.item():.4f} eval loss {held.item():.4f}")
