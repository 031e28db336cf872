"""Small models under an emulated plan, for the tests beside."""

import torch
from torch import nn

from precaudit.execution.apply import apply
from precaudit.model import OpFormat, Plan


def plan_for(model, default, modules=(), ops=()):
    """A plan with `default` everywhere but for `modules`, and operations as (fqn, op, format)."""
    formats = {fqn: default for fqn, _ in model.named_modules()} | dict(modules)
    return Plan(default=default, modules=formats, ops=tuple(OpFormat(*op) for op in ops))


def emulate(model, default, *inputs, modules=(), ops=()):
    """The model's output under a plan, emulated."""
    with apply(model, plan_for(model, default, modules, ops), execution="emulated"):
        return model(*inputs)


class Inside(nn.Module):
    """Runs `function(self, *inputs)` as its forward; keeps what the function noted in `seen`."""

    def __init__(self, function, size=4):
        super().__init__()
        self.lin = nn.Linear(size, size)
        self.function = function
        self.seen = {}

    def note(self, name, tensor):
        self.seen[name] = tensor
        return tensor

    def forward(self, *inputs):
        return self.function(self, *inputs)


def inside(function, default, *inputs, **exceptions):
    """What `function` returned and noted inside a model under a plan, before outputs become float32."""
    model = Inside(lambda model, *args: model.note("result", function(model, *args)))
    output = emulate(model, default, *inputs, **exceptions)
    return model.seen["result"], output


def weights(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
