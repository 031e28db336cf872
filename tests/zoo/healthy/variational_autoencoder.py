"""A variational autoencoder: exponentials of learned log-variances and a KL term."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class VAE(nn.Module):
    def __init__(self, features=40, hidden=96, latent=6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))

    def forward(self, x):
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        noise = torch.randn(mean.shape, device=x.device)
        latent = mean + torch.exp(log_variance / 2) * noise
        return self.decoder(latent), mean, log_variance


loadings = torch.randn(4, 40)


def batch(count=128):
    return (torch.randn(count, 4) @ loadings / 2 + 0.5 * torch.randn(count, 40)).to(device)


model = VAE().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(200):
    x = batch()
    reconstruction, mean, log_variance = model(x)
    kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1).mean()
    loss = F.mse_loss(reconstruction, x, reduction="sum") / len(x) + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} kl {kl.item():.4f}")
