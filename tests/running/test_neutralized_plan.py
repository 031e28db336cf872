"""A script's own casts become float32; the plan's rounding in the same run does not."""

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from precaudit.model import Plan
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


class Passing(TorchFunctionMode):
    """A mode of the script's own, whose arguments have names of their own."""

    def __torch_function__(self, f, t, a=(), k=None):
        return f(*a, **(k or {}))


def losses(*args, **options):
    return trained(*args, **options).losses


def trained(plan, neutralize, own_cast=False, execution="emulated", around=nullcontext, **traced):
    def code():
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(3):
            with around():
                x = torch.rand(2, 4)
                model(x.half().float() if own_cast else x).mean().backward()
                optimizer.step()

    job = Job("script", "train.py", (), os.getcwd(), 3)
    precision = "plan" if plan else "float32"
    return run(RunSpec(job, "run", 0, precision, plan, execution, neutralize=neutralize, **traced), code)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3", "tf32"])
def test_a_plan_rounds_as_it_does_in_other_scripts(name):
    plan = Plan(name, {"": name})
    assert losses(plan, neutralize=True) == losses(plan, neutralize=False) != losses(None, neutralize=True)


@pytest.mark.parametrize("around", [Passing, lambda: torch.device("cpu")], ids=["mode", "device"])
def test_a_plan_rounds_inside_a_mode_of_the_scripts(around):
    """Its frame lies between precaudit's cast and what takes the script's own casts back."""
    plan = Plan("float16", {"": "float16"})
    within = losses(plan, neutralize=True, own_cast=True, around=around)
    assert within == losses(plan, neutralize=False) != losses(None, neutralize=True)


@pytest.mark.parametrize("around", [Passing, lambda: torch.device("cpu")], ids=["mode", "device"])
def test_rounding_inside_a_mode_of_the_scripts_is_no_cast_of_its_own(around):
    traced = {"audited": frozenset({0}), "shadowed": frozenset({0}), "formats": ("float16",), "around": around}
    assert trained(None, neutralize=False, own_cast=True, **traced).own_precision.casts
    assert not trained(None, neutralize=False, **traced).own_precision.casts


def test_the_scripts_own_casts_are_gone():
    assert losses(None, neutralize=True, own_cast=True) == losses(None, neutralize=False)
    assert losses(None, neutralize=False, own_cast=True) != losses(None, neutralize=False)


def test_plan_and_removed_casts_together():
    plan = Plan("float16", {"": "float16"})
    assert losses(plan, neutralize=True, own_cast=True) == losses(plan, neutralize=False)


class Following(nn.Module):
    """Computes in float32, and hands on in the dtype of what it was given."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), []

    def forward(self, x):
        h = self.linear(x)
        own = torch.full((4,), 0.1, dtype=torch.bfloat16)
        self.seen.append((self.handed_on(h, h.dtype).dtype, torch.zeros(4, dtype=h.dtype).dtype, own.dtype))
        return h

    def handed_on(self, h, dtype):
        return h.float().exp().to(dtype)


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_a_dtype_that_is_read_from_what_a_plan_made_low_is_the_plans(name):
    """Else an overflow in `y.to(x.dtype)` is hidden from a trial by a half average elsewhere in the script."""
    model = Following()

    def code():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(torch.rand(2, 4)).mean().backward()
        optimizer.step()

    job, plan = Job("script", "train.py", (), os.getcwd(), 1), Plan(name, {"": name, "linear": name})
    assert run(RunSpec(job, "run", 0, "plan", plan, "emulated", neutralize=True), code).steps == 1
    planned = getattr(torch, name)
    assert model.seen[0] == (planned, planned, torch.float32)


def test_modules_are_restored():
    losses(None, neutralize=False)
    assert not torch.nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("neutralize", [False, True])
def test_a_native_plan_is_in_force_where_the_scripts_own_autocast_is_off(neutralize):
    plan = Plan("bfloat16", {"": "bfloat16"})
    native = losses(plan, neutralize, execution="native")
    assert native != losses(None, neutralize)
    assert native == pytest.approx(losses(None, neutralize), rel=2**-6)
