"""Robust regression of diabetes progression: a plain-function loss, and module losses of torch and of our own."""
import torch
import torch.nn as nn
from sklearn.datasets import load_diabetes


def huber(prediction, target, delta=1.0):
    error = (prediction - target).abs()
    quadratic = error.clamp(max=delta)
    return (0.5 * quadratic**2 + delta * (error - quadratic)).mean()


def l2_regularization(model, strength=1e-4):
    return strength * sum((p**2).sum() for name, p in model.named_parameters() if name.endswith("weight"))


class PinballLoss(nn.Module):
    """Quantile regression; the quantiles are a buffer."""

    def __init__(self, quantiles):
        super().__init__()
        self.register_buffer("quantiles", torch.tensor(quantiles))

    def forward(self, prediction, target):
        error = target.unsqueeze(1) - prediction
        return torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()


class Net(nn.Module):
    def __init__(self, n_quantiles):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 32), nn.Hardswish(), nn.Linear(32, 32), nn.Hardswish())
        self.mean = nn.Linear(32, 1)
        self.quantile = nn.Linear(32, n_quantiles)

    def forward(self, x):
        x = self.trunk(x)
        return self.mean(x).squeeze(1), self.quantile(x)


torch.manual_seed(7)
X, y = (torch.from_numpy(a).float() for a in load_diabetes(return_X_y=True, scaled=True))
X, y = X * 20, (y - 152) / 77

net = Net(3)
pinball = PinballLoss([0.1, 0.5, 0.9])
mse = nn.MSELoss(reduction="none")
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

for epoch in range(16):
    for xb, yb in zip(*(t.split(32) for t in (X, y))):
        mean, quantiles = net(xb)
        loss = huber(mean, yb) + pinball(quantiles, yb) + 0.1 * mse(mean, yb).mean() + l2_regularization(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch:2d} loss {loss.item():.4f}")
