import torch
from torch.nn.functional import cross_entropy

from .data import cubes
from .model import build


def fit(epochs, lr, batch_size=64):
    torch.manual_seed(0)
    points, labels = cubes()
    model = build()
    optimizer = torch.optim.RAdam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for rows in torch.randperm(len(points)).split(batch_size):
            loss = cross_entropy(model(points[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: {loss.item():.4f}")
    return model
