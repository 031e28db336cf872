"""Five-fold cross-validation: a new model and a new optimizer for each fold."""
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from torch import nn


def train_fold(X, y, train, test, epochs=3, batch_size=32):
    mean, std = X[train].mean(0), X[train].std(0)
    X = torch.tensor((X - mean) / std, dtype=torch.float32)
    y = torch.tensor(y, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(30, 24), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = nn.BCEWithLogitsLoss()
    model.train()
    for _ in range(epochs):
        np.random.shuffle(train)
        for start in range(0, len(train), batch_size):
            rows = train[start:start + batch_size]
            optimizer.zero_grad()
            loss = criterion(model(X[rows])[:, 0], y[rows])
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return ((model(X[test])[:, 0] > 0).float() == y[test]).float().mean().item()


X, y = load_breast_cancer(return_X_y=True)
scores = []
for fold, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y)):
    scores.append(train_fold(X, y, train, test))
    print(f"fold {fold}: accuracy {scores[-1]:.3f}")
print(f"mean {np.mean(scores):.3f} +- {np.std(scores):.3f}")
