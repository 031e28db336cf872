"""What tracing asks of tensors passes through no other function mode: it would be asked of all, for every operation."""

import pytest
import torch
from torch import nn
from traced import Counting, tracing


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.state = nn.Linear(4, 8), nn.Linear(4, 8, bias=False)

    def forward(self, x, h):
        gate, new = (self.inner(x) + self.state(h)).chunk(2, -1)
        return h + torch.sigmoid(gate) * torch.tanh(new)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, x):
        h = torch.zeros_like(x[0])
        for row in x:
            h = self.cell(row, h)
        return h


def asked(model, length):
    """How many calls an outer mode sees of a training step, without and with its forward pass traced."""
    x = torch.randn(length, 3, 4)
    with Counting() as plain:
        model(x).sum().backward()
    with Counting() as outer, tracing(formats=("bfloat16", "float16"), shadowed=lambda step: True) as traced:
        model(x).sum().backward()
    assert traced.op("cell", "tanh").calls == length
    return plain.seen, outer.seen


@pytest.mark.parametrize("length", [4, 64])
def test_an_outer_mode_sees_the_script_s_calls_and_hardly_another(length):
    plain, seen = asked(Network(), length)
    assert plain >= 8 * length
    assert plain <= seen <= plain + 20
