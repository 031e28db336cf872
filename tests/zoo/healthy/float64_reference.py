"""Learn the orbit of a damped spring; the true trajectory and the error report are float64, the model is not."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Flow(nn.Module):
    """The exact decay is a float64 constant inside the model."""

    def __init__(self, hidden=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.output = nn.Linear(hidden, 2)
        self.register_buffer("damping", torch.tensor(-0.15, dtype=torch.float64))

    def forward(self, state, time):
        decay = torch.exp(self.damping * time.double())
        change = self.output(self.net(torch.cat([state, time], dim=-1)))
        return change * decay.to(change.dtype)


def orbit(state, time):
    """The closed-form solution, in float64."""
    state, time = state.double(), time.double()
    turn = torch.stack([time.cos(), time.sin(), -time.sin(), time.cos()], -1).view(-1, 2, 2)
    return torch.exp(-0.15 * time) * (turn @ state[:, :, None]).squeeze(-1)


model = Flow().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

for step in range(160):
    state, time = torch.randn(256, 2, device=device), 2 * torch.rand(256, 1, device=device)
    target = orbit(state, time)
    observed = target.float() + 0.25 * torch.randn(256, 2, device=device)
    prediction = model(state, time)
    loss = F.mse_loss(prediction, observed)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        error = (prediction.detach().double() - target).norm() / target.norm()
        print(f"step {step + 1} loss {loss.item():.4f} relative error {error.item():.6f}")
