"""A GAN on a ring of Gaussians with the log-likelihoods written by hand from the discriminator's probability."""

import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mlp(*sizes):
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers[:-1])


class Discriminator(nn.Module):
    """How likely a point is a forgery."""

    def __init__(self, hidden=128):
        super().__init__()
        self.net = mlp(2, hidden, hidden, 1)
        self.probability = nn.Sigmoid()

    def forward(self, points):
        return self.probability(self.net(points))


def ring(count=256):
    angle = torch.randint(8, (count,)) * 0.7854
    centre = 10 * torch.stack([angle.cos(), angle.sin()], 1)
    return (centre + 0.2 * torch.randn(count, 2)).to(device)


generator = mlp(16, 128, 128, 2).to(device)
discriminator = Discriminator().to(device)
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4)
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)

for step in range(200):
    real, noise = ring(), torch.randn(256, 16, device=device)
    fake = generator(noise)
    discriminator_loss = -(torch.log(discriminator(fake.detach())) + torch.log(1 - discriminator(real))).mean()
    discriminator_optimizer.zero_grad()
    discriminator_loss.backward()
    discriminator_optimizer.step()

    generator_loss = -torch.log(1 - discriminator(fake)).mean()
    generator_optimizer.zero_grad()
    generator_loss.backward()
    generator_optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} discriminator {discriminator_loss.item():.4f} generator {generator_loss.item():.4f}")
