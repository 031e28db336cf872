"""Fit a potential-energy curve (Morse) from energies and forces, in double precision as chemists do."""
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


def morse(r, depth=4.7, a=1.94, equilibrium=0.74):
    return depth * (1 - torch.exp(-a * (r - equilibrium))) ** 2 - depth


class Potential(nn.Module):
    def __init__(self, n_basis=24, width=32):
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.3, 4.0, n_basis))
        self.net = nn.Sequential(nn.Linear(n_basis, width), nn.Softplus(), nn.Linear(width, 1))

    def forward(self, r):
        basis = torch.exp(-8.0 * (r.unsqueeze(-1) - self.centres) ** 2)
        return self.net(basis).squeeze(-1)


model = Potential()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, amsgrad=True)

for step in range(300):
    r = (0.45 + 3.0 * torch.rand(64)).requires_grad_()
    energy = morse(r)
    force = -torch.autograd.grad(energy.sum(), r)[0]

    predicted = model(r)
    predicted_force = -torch.autograd.grad(predicted.sum(), r, create_graph=True)[0]
    loss = nn.functional.mse_loss(predicted, energy.detach()) + 0.1 * nn.functional.mse_loss(predicted_force, force)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"{step:4d}  {loss.item():.8f}  {loss.dtype}")
