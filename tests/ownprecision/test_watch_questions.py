"""What the watch asks of a script's tensors passes through few of the other modes, such as the emulated autocast's."""

import os

import pytest
import torch
from torch import nn
from traced import Counting

from precaudit.instrument.names import ModuleNames
from precaudit.ownprecision.records import OwnPrecision
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.running.assembly import Session
from precaudit.running.job import Job, RunSpec
from precaudit.running.monitor import Stop


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


@pytest.mark.parametrize(
    ("precision", "watched"), [("float32", False), ("plan", False), ("own-casts", True), ("as-written", True)]
)
def test_only_runs_in_a_script_s_own_precision_are_watched(precision, watched):
    """A watched operation takes many times as long."""
    spec = RunSpec(Job("script", "train.py", (), os.getcwd(), 3), "x", precision=precision, audited=frozenset({0}))
    assert (Session(spec, lambda step, seconds: None, Stop(None)).own_low is not None) == watched
