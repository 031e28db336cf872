"""Denoise signals with an autoencoder held in float16, weights and Adam's moments alike."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Autoencoder(nn.Module):
    def __init__(self, samples=64, code=12):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(samples, 64), nn.ReLU(), nn.Linear(64, code))
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, samples))

    def forward(self, signal):
        return self.decoder(self.encoder(signal))


def signals(count=64):
    time = torch.linspace(0, 6.28, 64)
    frequency, phase = 1 + 2 * torch.rand(count, 1), 6.28 * torch.rand(count, 1)
    clean = torch.sin(frequency * time + phase)
    return (clean + 0.3 * torch.randn_like(clean)).to(device), clean.to(device)


model = Autoencoder().half().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(200):
    noisy, clean = signals()
    loss = F.mse_loss(model(noisy.half()).float(), clean)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
