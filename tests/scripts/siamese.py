"""Metric learning on the digits: one network sees anchor, positive and negative; then a contrastive phase."""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

rng = np.random.RandomState(0)
torch.manual_seed(0)

X, y = load_digits(return_X_y=True)
X = torch.tensor(X / 16.0, dtype=torch.float32)
by_label = [np.flatnonzero(y == c) for c in range(10)]


class EmbeddingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(64, 96), nn.PReLU(), nn.Linear(96, 96), nn.PReLU(), nn.Linear(96, 16))

    def forward(self, x):
        return F.normalize(self.fc(x), dim=-1)


class TripletNet(nn.Module):
    def __init__(self, embedding_net):
        super().__init__()
        self.embedding_net = embedding_net

    def forward(self, x1, x2, x3):
        return self.embedding_net(x1), self.embedding_net(x2), self.embedding_net(x3)

    def get_embedding(self, x):
        return self.embedding_net(x)


def triplets(n):
    anchor_class = rng.randint(10, size=n)
    other_class = (anchor_class + rng.randint(1, 10, size=n)) % 10
    pick = lambda classes: X[np.array([rng.choice(by_label[c]) for c in classes])]
    return pick(anchor_class), pick(anchor_class), pick(other_class)


def contrastive_loss(a, b, same, margin=0.8):
    distance = (a - b).norm(dim=1)
    return (same * distance**2 + (1 - same) * F.relu(margin - distance) ** 2).mean()


model = TripletNet(EmbeddingNet())
loss_fn = nn.TripletMarginLoss(margin=0.4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(250):
    anchor, positive, negative = triplets(48)
    optimizer.zero_grad()
    if step < 150:
        loss = loss_fn(*model(anchor, positive, negative))
    else:
        a, p = model.get_embedding(anchor), model.get_embedding(positive)
        n = model.get_embedding(negative)
        loss = contrastive_loss(a, p, torch.ones(48)) + contrastive_loss(a, n, torch.zeros(48))
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        with torch.no_grad():
            e = model.get_embedding(X)
            nearest = torch.cdist(e, e).fill_diagonal_(float("inf")).argmin(1).numpy()
        print(f"step {step} loss {loss.item():.4f} 1-NN accuracy {np.mean(y[nearest] == y):.3f}")
