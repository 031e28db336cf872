"""Arms in force on a model, on the CPU's own autocast."""

import pytest
import torch
from torch import nn

from precaudit.measuring.arms import engaged
from precaudit.measuring.program import arms_for
from precaudit.measuring.records import Arm
from precaudit.model import LossScale, Plan

H100 = ("tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")
V100 = ("float16",)


def named(plan, formats):
    return {arm.name: arm for arm in arms_for(plan, formats)}


def test_arms_follow_the_plan_and_the_card():
    plan = Plan("float16", loss_scale=LossScale("dynamic", 1024.0, 100))
    found = named(plan, H100)
    assert list(found) == ["float32", "tf32", "amp", "plan"]
    assert (found["amp"].half, found["amp"].scale) == ("float16", 2.0**16)
    assert (found["plan"].plan, found["plan"].scale) == (plan, 1024.0)
    assert [arm.name for arm in found.values() if arm.tf32] == ["tf32"]


def test_a_card_without_a_format_has_no_arm_for_it():
    assert list(named(Plan("float16"), V100)) == ["float32", "amp", "plan"]
    assert named(Plan("bfloat16"), V100)["amp"].half == "float16"


def test_a_plan_of_float32_has_no_arm():
    assert list(named(Plan(), H100)) == ["float32", "tf32", "amp"]
    assert named(Plan(), H100)["amp"].half == "bfloat16"


def test_bfloat16_has_no_scaler():
    assert {arm.scale for arm in arms_for(Plan("bfloat16"), H100)} == {None}


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def run(arm, model, name="net"):
    inside, handle = [], model[0].register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    with engaged(arm, {name: model}, "cpu"):
        tf32 = torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()
        output = model(torch.ones(2, 4))
    handle.remove()
    return inside[0], output.dtype, tf32


@pytest.mark.parametrize(
    ("arm", "inside"),
    [
        (Arm("float32"), torch.float32),
        (Arm("tf32", tf32=True), torch.float32),
        (Arm("amp", half="bfloat16"), torch.bfloat16),
        (Arm("plan", plan=Plan("bfloat16", {"0": "bfloat16", "1": "float32"})), torch.bfloat16),
        (Arm("plan", plan=Plan("bfloat16", {"0": "float32", "1": "bfloat16"})), torch.float32),
        (
            Arm("plan", plan=Plan("float32", {"net.0": "bfloat16", "net.1": "float32", "other.0": "float32"})),
            torch.bfloat16,
        ),
    ],
)
def test_dtypes_inside_each_arm(arm, inside, model):
    before = torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()
    assert run(arm, model) == (inside, torch.float32, (arm.tf32, arm.tf32))
    assert run(Arm("float32"), model)[0] == torch.float32
    assert (torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()) == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_failing_forward_leaves_no_region_open(model):
    with engaged(Arm("amp", half="bfloat16"), {"net": model}, "cpu"):
        with pytest.raises(RuntimeError):
            model(torch.ones(2, 5))
        assert not torch.is_autocast_enabled("cpu")
