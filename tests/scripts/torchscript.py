"""A scripted recurrent layer (a loop that TorchScript unrolls) inside an ordinary model."""
from typing import List, Tuple

import torch
import torch.nn as nn
from torch import Tensor


class ScriptedLSTMLayer(nn.Module):
    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_map = nn.Linear(input_size, 4 * hidden_size)
        self.hidden_map = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor, state: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:
        hx, cx = state
        outputs: List[Tensor] = []
        for step in x.unbind(0):
            gates = self.input_map(step) + self.hidden_map(hx)
            i, f, g, o = gates.chunk(4, 1)
            cx = torch.sigmoid(f) * cx + torch.sigmoid(i) * torch.tanh(g)
            hx = torch.sigmoid(o) * torch.tanh(cx)
            outputs.append(hx)
        return torch.stack(outputs), (hx, cx)


@torch.jit.script
def cumulative_target(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0])
    out: List[Tensor] = []
    for step in x.unbind(0):
        total = 0.9 * total + step
        out.append(total)
    return torch.stack(out)


class Integrator(nn.Module):
    """Learns a leaky running sum."""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.hidden = hidden
        self.rnn = torch.jit.script(ScriptedLSTMLayer(1, hidden))
        self.read = nn.Linear(hidden, 1)

    def forward(self, x):
        zeros = x.new_zeros(x.size(1), self.hidden)
        out, _ = self.rnn(x, (zeros, zeros))
        return self.read(out)


torch.manual_seed(0)
model = Integrator()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(250):
    x = torch.randn(16, 32, 1) * 0.5
    loss = nn.functional.mse_loss(model(x), cumulative_target(x))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print("step", step, "loss", loss.item())
