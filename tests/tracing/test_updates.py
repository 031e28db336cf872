"""Weights, updates and what half-precision weights would absorb of them."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from traced import tracing
from training_styles import numbers

from precaudit.tracing.parameters import absorbed_update

floats = st.floats(-4, 4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20)


def to_half(value, name):
    """A Python float in the format, through the standard library or the bit pattern."""
    if name == "float16":
        return struct.unpack("<e", struct.pack("<e", value))[0]
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(floats, st.sampled_from([1e-9, 1e-4, 1e-2, 1.0]), floats), min_size=1, max_size=6))
def test_absorbed_update_against_brute_force(triples):
    before = torch.tensor([w for w, _, _ in triples])
    after = before + torch.tensor([size * u for _, size, u in triples])
    updates = [a - w for a, w in zip(after.double().tolist(), before.double().tolist(), strict=True)]
    total = sum(u * u for u in updates)
    got = absorbed_update(before, after)
    if not total:
        assert got == {}
        return
    for name in ("bfloat16", "float16"):
        stored = [to_half(w, name) for w in before.tolist()]
        lost = sum(u * u for w, u in zip(stored, updates, strict=True) if to_half(w + u, name) == w)
        assert got[name] == pytest.approx(lost / total, rel=1e-9)


def test_a_small_update_of_a_large_weight_is_lost_in_bfloat16_first():
    before = torch.ones(100)
    assert absorbed_update(before, before + 2.0**-10) == {"bfloat16": 1.0, "float16": 0.0}
    assert absorbed_update(before, before + 2.0**-14) == {"bfloat16": 1.0, "float16": 1.0}
    assert absorbed_update(before, before + 0.5) == {"bfloat16": 0.0, "float16": 0.0}


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, 1e200])
def test_no_absorbed_share_for_zero_and_nonfinite_updates(value):
    """The square of 1e200 is none that a float has."""
    before = torch.ones(3, dtype=torch.float64)
    assert absorbed_update(before, torch.tensor([1.0, value, 1.0], dtype=torch.float64)) == {}


def test_updates_are_weight_after_minus_weight_before():
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    start = model.weight.detach().clone()
    with tracing(shadowed=lambda step: True) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
        model(numbers(0, 5, 4)).sum().backward()
        optimizer.step()
    stats = traced.layer("").tensor("update", "weight").stats
    update = model.weight.detach() - start
    assert stats.amax == update.abs().max().item()
    assert stats.sum_squares == pytest.approx(update.double().square().sum().item(), rel=1e-6)
    assert traced.layer("").tensor("weight", "weight").stats.amax == start.abs().max().item()
    assert traced.layer("").absorbed_update == absorbed_update(start, model.weight.detach())


def test_layer_has_the_largest_absorbed_share_of_its_parameters():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1e-4)
    with tracing(shadowed=lambda step: True) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    assert traced.layer("").absorbed_update["bfloat16"] == 1.0


def test_parameters_without_a_gradient_are_not_updated():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with tracing() as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[0](torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert traced.layer("0").tensor("update", "weight") is not None
    assert traced.trace.leaves == ("0", "1")
    assert [layer.fqn for layer in traced.trace.layers] == ["0"]


def test_parameters_of_two_optimizers():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.Sequential(first, second)
    with tracing() as traced:
        optimizers = [torch.optim.SGD(first.parameters(), lr=0.1), torch.optim.Adam(second.parameters(), lr=0.1)]
        model(torch.ones(1, 2)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert traced.layer("0").tensor("update").stats.numel == traced.layer("1").tensor("update").stats.numel == 4
    assert {t.name for t in traced.layer("1").tensors if t.role == "optimizer_state"} == {
        "weight.exp_avg",
        "weight.exp_avg_sq",
    }


@pytest.mark.parametrize("dry_run", [True, False])
def test_lazy_parameters_are_learned_once_they_have_values(dry_run):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    with tracing(shadowed=lambda step: True) as traced:
        if dry_run:
            model(torch.ones(2, 3))
        loss = model(numbers(0, 8, 3)).square().mean()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss.backward()
        optimizer.step()
    for role in ("weight", "weight_grad", "update"):
        assert traced.layer("0").tensor(role, "weight").stats.numel == 12
