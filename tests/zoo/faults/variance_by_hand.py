"""Normalise spectra by hand, with the variance as the mean square less the squared mean."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Standardize(nn.Module):
    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance + 1e-5)


class SpectrumNet(nn.Module):
    def __init__(self, channels=8, classes=5):
        super().__init__()
        self.smooth = nn.Conv1d(1, channels, 7, padding=3)
        self.standardize = Standardize()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 64), nn.ReLU(), nn.Linear(64, classes))
        nn.init.uniform_(self.smooth.weight, 0.05, 0.25)

    def forward(self, spectra):
        return self.classifier(self.standardize(self.smooth(spectra)))


peaks = torch.randint(8, 56, (5, 2))


def spectra(count=128):
    """Two faint peaks a class on a bright continuum."""
    label = torch.randint(5, (count,))
    bins = torch.arange(64)
    shape = torch.exp(-((bins - peaks[label][:, :, None]) ** 2) / 18.0).sum(1)
    continuum = 80 + 40 * torch.rand(count, 1)
    return (continuum + 1.5 * shape + torch.randn(count, 64))[:, None].to(device), label.to(device)


model = SpectrumNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(200):
    x, label = spectra()
    loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
