"""A vector-quantised autoencoder whose codebook is a decayed running mean, kept in bfloat16 buffers."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Codebook(nn.Module):
    """Running counts and sums of the vectors assigned to each code; a code is their ratio."""

    def __init__(self, codes=32, width=8, decay=0.98):
        super().__init__()
        self.decay = decay
        start = torch.randn(codes, width)
        self.register_buffer("counts", torch.full((codes,), 8.0).bfloat16())
        self.register_buffer("sums", (8.0 * start).bfloat16())

    def forward(self, latent):
        codes = self.sums.float() / self.counts.float()[:, None].clamp(min=1e-3)
        nearest = torch.cdist(latent.detach(), codes).argmin(-1)
        if self.training:
            chosen = F.one_hot(nearest, len(codes)).float()
            self.counts.mul_(self.decay).add_(chosen.sum(0).to(self.counts.dtype), alpha=1 - self.decay)
            self.sums.mul_(self.decay).add_((chosen.T @ latent.detach()).to(self.sums.dtype), alpha=1 - self.decay)
        quantised = codes[nearest]
        commitment = F.mse_loss(latent, quantised)
        return latent + (quantised - latent).detach(), commitment


class QuantisedAutoencoder(nn.Module):
    def __init__(self, features=32, width=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, width))
        self.codebook = Codebook(width=width)
        self.decoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, features))

    def forward(self, x):
        quantised, commitment = self.codebook(self.encoder(x))
        return self.decoder(quantised), commitment


centres = 1.5 * torch.randn(24, 32)
model = QuantisedAutoencoder().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(300):
    x = (centres[torch.randint(24, (256,))] + 0.5 * torch.randn(256, 32)).to(device)
    reconstruction, commitment = model(x)
    loss = F.mse_loss(reconstruction, x) + 0.25 * commitment
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} commitment {commitment.item():.4f}")
