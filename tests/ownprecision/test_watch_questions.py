"""What the watch asks of a script's tensors passes through few of the other modes, such as the emulated autocast's."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from precaudit.instrument.names import ModuleNames
from precaudit.ownprecision.records import OwnPrecision
from precaudit.ownprecision.watch import OwnLowPrecision


class Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


def computed(length):
    layer, h = nn.Linear(4, 4), torch.zeros(3, 4)
    for _ in range(length):
        h = torch.sigmoid(layer(h)) * torch.tanh(h) + 1.0
    return h


def test_a_watched_operation_is_asked_about_in_few_calls_of_outer_modes():
    with Counting() as plain:
        computed(40)
    with Counting() as outer, OwnLowPrecision(ModuleNames(), OwnPrecision()):
        computed(40)
    assert plain.seen >= 5 * 40
    assert plain.seen <= outer.seen <= 4 * plain.seen
