"""Denoise signals with an autoencoder under float16 autocast with a gradient scaler; Adam's moments are float32."""

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


model = Autoencoder().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12)

for step in range(200):
    noisy, clean = signals()
    with torch.autocast(device.type, dtype=torch.float16):
        restored = model(noisy)
    loss = F.mse_loss(restored.float(), clean)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
