import torch
import torch.nn as nn
from torch import autograd

# WGAN-GP (Gulrajani et al.) on two moons

BATCH_SIZE = 128
LAMBDA = 1.0
CRITIC_ITERS = 5
ITERS = 60
DIM = 64
use_cuda = torch.cuda.is_available()
device = torch.device("cuda" if use_cuda else "cpu")


def inf_train_gen():
    while True:
        angle = torch.rand(BATCH_SIZE) * torch.pi
        upper = torch.rand(BATCH_SIZE) < 0.5
        x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle))
        y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
        yield (torch.stack([x, y], 1) + 0.05 * torch.randn(BATCH_SIZE, 2)).to(device)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(2, DIM), nn.ReLU(True),
            nn.Linear(DIM, DIM), nn.ReLU(True),
            nn.Linear(DIM, 2),
        )

    def forward(self, noise):
        return self.main(noise)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(2, DIM), nn.Softplus(),
            nn.Linear(DIM, DIM), nn.Softplus(),
            nn.Linear(DIM, 1),
        )

    def forward(self, inputs):
        return self.main(inputs).view(-1)


def calc_gradient_penalty(critic, real_data, fake_data):
    alpha = torch.rand(BATCH_SIZE, 1, device=device)
    interpolates = (alpha * real_data + (1 - alpha) * fake_data).requires_grad_(True)
    disc_interpolates = critic(interpolates)
    gradients = autograd.grad(
        outputs=disc_interpolates, inputs=interpolates,
        grad_outputs=torch.ones_like(disc_interpolates),
        create_graph=True, retain_graph=True, only_inputs=True,
    )[0]
    return ((gradients.norm(2, dim=1) - 1) ** 2).mean() * LAMBDA


generator = Generator().to(device)
critic = Critic().to(device)
optimizerD = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
optimizerG = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
data = inf_train_gen()

for iteration in range(ITERS):
    for p in critic.parameters():
        p.requires_grad_(True)
    for _ in range(CRITIC_ITERS):
        real = next(data)
        critic.zero_grad()
        with torch.no_grad():
            fake = generator(torch.randn(BATCH_SIZE, 2, device=device))
        wasserstein = critic(real).mean() - critic(fake).mean()
        penalty = calc_gradient_penalty(critic, real, fake)
        (penalty - wasserstein).backward()
        optimizerD.step()

    for p in critic.parameters():
        p.requires_grad_(False)
    generator.zero_grad()
    G_cost = -critic(generator(torch.randn(BATCH_SIZE, 2, device=device))).mean()
    G_cost.backward()
    optimizerG.step()

    if iteration % 10 == 0:
        print("iter", iteration, "W distance", wasserstein.item(), "penalty", penalty.item(), "G cost", G_cost.item())
