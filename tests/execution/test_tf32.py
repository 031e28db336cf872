"""Float32 products as TF32: a setting that is put back, and a script's own wishes for it."""

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch import nn

import precaudit
from precaudit.execution.libraries import PlanAutocast
from precaudit.execution.native import region_for
from precaudit.execution.products import own_settings_ignored, tf32
from precaudit.model import Plan
from precaudit.ownprecision.baseline import Baseline


def allowed():
    return torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()


def test_the_setting_is_put_back():
    before = allowed()
    for wanted in (True, False):
        with suppress(ZeroDivisionError), tf32(wanted):
            assert allowed() == (wanted, wanted)
            raise ZeroDivisionError
        assert allowed() == before


WISHES = {
    "precision": lambda: torch.set_float32_matmul_precision("high"),
    "matmul flag": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cudnn flag": lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
}


@pytest.mark.parametrize("name", WISHES)
def test_tf32_settings_of_the_script_are_ignored(name):
    with tf32(False), own_settings_ignored():
        WISHES[name]()
        assert allowed() == (False, False)
        with tf32(True):
            assert allowed() == (True, True)


def test_blocks_may_end_in_any_order():
    """As those of two threads in one model, or of plans on two models, do."""
    before, high, exact = allowed(), tf32(True), tf32(False)
    high.__enter__(), exact.__enter__()
    assert allowed() == (False, False)
    high.__exit__()
    assert allowed() == (False, False)
    exact.__exit__()
    assert allowed() == before


def test_one_plan_that_is_removed_leaves_the_others_their_products():
    plan, before = Plan("tf32", {"": "tf32"}, matmul_precision="high"), allowed()
    first, second = (precaudit.apply(nn.Linear(2, 2), plan, execution="native") for _ in range(2))
    first.remove()
    assert allowed() == (True, True)
    second.remove()
    assert allowed() == before


def test_regions_of_a_plan():
    with region_for("tf32", "cpu"):
        assert allowed() == (True, True)
        with region_for("float32", "cpu"):
            assert allowed() == (False, False)


def test_a_plans_region_stays_in_force_where_a_scripts_is_off():
    x = torch.ones(2, 2)
    with Baseline().neutralized(), torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.float32
        with PlanAutocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_an_applied_plan_sets_and_puts_back_the_backward_products():
    model, before = nn.Linear(2, 2), allowed()
    plan = Plan("tf32", {"": "tf32"}, matmul_precision="high")
    with precaudit.apply(model, plan, execution="native"):
        assert allowed() == (True, True)
    assert allowed() == before
    with precaudit.apply(model, plan, execution="emulated"):
        assert allowed() == before


@pytest.mark.skipif(not hasattr(torch._C, "_set_fp32_precision_setter"), reason="new with torch 2.9")
def test_settings_of_single_operations_come_back():
    """A script that made these is one that torch doesn't tell the old settings of."""
    code = """
import torch
from precaudit.execution.products import tf32

def now():
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
            torch.backends.cudnn.rnn.fp32_precision]

torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
before = now()
with tf32(False):
    assert now() != before
assert now() == before, (before, now())
with tf32(True), tf32(False):
    pass
assert now() == before, (before, now())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(torch._C, "_set_fp32_precision_setter"), reason="new with torch 2.9")
def test_inherited_settings_are_overridden_and_restored():
    code = """
import torch
from precaudit.execution.products import tf32

def now():
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]

torch.backends.cudnn.conv.fp32_precision = "none"
with tf32(False):
    pass
torch.backends.fp32_precision = "tf32"
assert now() == ["tf32", "tf32"], now()
with tf32(False):
    assert now() == ["ieee", "ieee"], now()
assert torch.backends.fp32_precision == "tf32"
torch.backends.fp32_precision = "ieee"
assert now() == ["ieee", "ieee"], now()
torch.backends.cudnn.conv.fp32_precision = "tf32"
with tf32(False):
    pass
torch.backends.fp32_precision = "none"
assert now() == ["none", "tf32"], now()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
