import torch
from torch import nn

model = nn.Linear(3, 1
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    loss = model(torch.randn(4, 3)).mean()
    loss.backward()
    optimizer.step()
