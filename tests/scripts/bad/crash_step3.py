import torch
from torch import nn


class Divider(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x)


def train_step(step, model, optimizer):
    x = torch.randn(8, 3)
    loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item() / (3 - step)


model = Divider()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(1, 200):
    print("step", step, train_step(step, model, optimizer))
