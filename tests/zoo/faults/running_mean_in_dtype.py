"""Centre smoothed spectra by a running mean that is kept up to date in the dtype of the spectra."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Center(nn.Module):
    """The batch's mean in training, the running one in evaluation."""

    def __init__(self, channels, start):
        super().__init__()
        self.register_buffer("mean", torch.full((channels,), start))

    def forward(self, x):
        mean = self.mean
        if self.training:
            mean = x.mean((0, 2))
            with torch.no_grad():
                self.mean.copy_(self.mean.to(x.dtype) * 0.99 + mean * 0.01)
        return (x - mean[:, None]) / 4


class SpectrumNet(nn.Module):
    def __init__(self, channels=8, classes=5):
        super().__init__()
        self.smooth = nn.Conv1d(1, channels, 5, padding=2, bias=False)
        nn.init.constant_(self.smooth.weight, 0.2)
        self.center = Center(channels, 36.0)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * 32, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, spectra):
        return self.classifier(self.center(self.smooth(spectra)))


peaks = torch.randint(4, 28, (5, 2))


def spectra(count=128):
    """Two peaks a class; the lamp is brighter today than the stored mean says."""
    label = torch.randint(5, (count,))
    shape = torch.exp(-((torch.arange(32) - peaks[label][:, :, None]) ** 2) / 8.0).sum(1)
    return (44 + 12 * shape + 4 * torch.randn(count, 32))[:, None].to(device), label.to(device)


model = SpectrumNet().to(device)
optimizer = torch.optim.Adam(model.classifier.parameters(), lr=1e-3)

for step in range(200):
    x, label = spectra()
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            print(f"step {step + 1} eval loss {F.cross_entropy(model(x), label).item():.4f}")
        model.train()
    loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
