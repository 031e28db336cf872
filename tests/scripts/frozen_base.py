"""Fine-tune a head on a frozen base. The base is "pre-trained": principal components in closed form."""
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)

X, y = load_digits(return_X_y=True)
X = torch.tensor(X, dtype=torch.float32) / 16
y = torch.tensor(y)


class Backbone(nn.Module):
    """Whitened principal components, then normalisation with fixed statistics."""

    def __init__(self, data, n_components=32):
        super().__init__()
        self.project = nn.Linear(64, n_components)
        self.bn = nn.BatchNorm1d(n_components, affine=False)
        self.act = nn.Tanh()
        mean = data.mean(0)
        _, s, vt = torch.linalg.svd(data - mean, full_matrices=False)
        with torch.no_grad():
            weight = vt[:n_components] / s[:n_components, None] * len(data) ** 0.5
            self.project.weight.copy_(weight)
            self.project.bias.copy_(-weight @ mean)

    def forward(self, x):
        return self.act(self.bn(self.project(x)))


backbone = Backbone(X)
for param in backbone.parameters():
    param.requires_grad = False

model = nn.Sequential()
model.add_module("backbone", backbone)
model.add_module("head", nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)))

criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1, momentum=0.9)

for epoch in range(10):
    model.train()
    model.backbone.eval()
    for rows in torch.randperm(1400).split(64):
        optimizer.zero_grad()
        loss = criterion(model(X[rows]), y[rows])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(X[1400:]).argmax(1) == y[1400:]).float().mean().item()
    print(f"epoch {epoch}: loss {loss.item():.4f} held-out accuracy {accuracy:.3f}")
