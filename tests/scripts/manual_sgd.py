# No optimizer: plain gradient descent with momentum, written out
import torch
import torch.nn as nn
from sklearn.datasets import load_iris

lr = 0.05
momentum = 0.9

iris = load_iris()
x = torch.tensor(iris.data, dtype=torch.float32)
x = (x - x.mean(dim=0)) / x.std(dim=0)
y = torch.tensor(iris.target)

model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
velocity = [torch.zeros_like(p) for p in model.parameters()]

for t in range(300):
    batch = torch.randint(0, len(x), (24,))
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])

    model.zero_grad()
    loss.backward()

    with torch.no_grad():
        for p, v in zip(model.parameters(), velocity):
            v.mul_(momentum).add_(p.grad)
            p -= lr * v

    if t % 50 == 49:
        accuracy = (model(x).argmax(1) == y).float().mean().item()
        print(t, loss.item(), accuracy)
