"""A convolutional GAN on images of one bright blob, trained with the non-saturating loss."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Generator(nn.Module):
    def __init__(self, noise=16, width=16):
        super().__init__()
        self.project = nn.Linear(noise, 2 * width * 4 * 4)
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )

    def forward(self, noise):
        return torch.tanh(self.grow(self.project(noise).view(len(noise), -1, 4, 4)))


class Discriminator(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.shrink = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(2 * width * 16, 1)

    def forward(self, images):
        return self.score(self.shrink(images).flatten(1))


def blobs(count=32):
    centre = 4 + 8 * torch.rand(count, 2, 1)
    bump = torch.exp(-((torch.arange(16) - centre) ** 2) / 6)
    return (2 * bump[:, 0, :, None] * bump[:, 1, None, :] - 1)[:, None].to(device)


generator, discriminator = Generator().to(device), Discriminator().to(device)
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

for step in range(160):
    real = blobs()
    fake = generator(torch.randn(len(real), 16, device=device))
    discriminator_loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
    discriminator_optimizer.zero_grad()
    discriminator_loss.backward()
    discriminator_optimizer.step()

    generator_loss = F.softplus(-discriminator(fake)).mean()
    generator_optimizer.zero_grad()
    generator_loss.backward()
    generator_optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} discriminator {discriminator_loss.item():.4f} generator {generator_loss.item():.4f}")
