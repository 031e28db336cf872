"""A script's own casts become float32; the plan's rounding in the same run does not."""

import os

import pytest
import torch
from torch import nn

from precaudit.model import Plan
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def losses(plan, neutralize, own_cast=False, execution="emulated"):
    def code():
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(3):
            x = torch.rand(2, 4)
            model(x.half().float() if own_cast else x).mean().backward()
            optimizer.step()

    job = Job("script", "train.py", (), os.getcwd(), 3)
    precision = "plan" if plan else "float32"
    return run(RunSpec(job, "run", 0, precision, plan, execution, neutralize=neutralize), code).losses


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3", "tf32"])
def test_a_plan_rounds_as_it_does_in_other_scripts(name):
    plan = Plan(name, {"": name})
    assert losses(plan, neutralize=True) == losses(plan, neutralize=False) != losses(None, neutralize=True)


def test_the_scripts_own_casts_are_gone():
    assert losses(None, neutralize=True, own_cast=True) == losses(None, neutralize=False)
    assert losses(None, neutralize=False, own_cast=True) != losses(None, neutralize=False)


def test_both_at_once():
    plan = Plan("float16", {"": "float16"})
    assert losses(plan, neutralize=True, own_cast=True) == losses(plan, neutralize=False)


def test_nothing_stays_on_modules():
    losses(None, neutralize=False)
    assert not torch.nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("neutralize", [False, True])
def test_a_native_plan_is_in_force_where_the_scripts_own_autocast_is_off(neutralize):
    plan = Plan("bfloat16", {"": "bfloat16"})
    native = losses(plan, neutralize, execution="native")
    assert native != losses(None, neutralize)
    assert native == pytest.approx(losses(None, neutralize), rel=2**-6)
