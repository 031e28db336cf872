"""One bad record: a NaN in a single batch poisons everything that follows."""
import torch
from torch import nn

torch.manual_seed(0)
data = torch.randn(1600, 6)
target = (data[:, :1] * data[:, 1:2]).tanh()
data[37, 2] = float("nan")

model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(10):
    for start in range(0, len(data), 16):
        loss = nn.functional.mse_loss(model(data[start:start + 16]), target[start:start + 16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if start % 320 == 0:
            print(epoch, start, loss.item())
