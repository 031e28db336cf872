"""A script's autocast regions, scalers and plans: noted, and off."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.utils.checkpoint import checkpoint

import precaudit
from precaudit.model import Plan
from precaudit.ownprecision.baseline import Baseline
from precaudit.ownprecision.records import OwnPrecision, Scaler

NO_CUDA = pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")
DEPRECATED = pytest.mark.filterwarnings("ignore:`torch.(cuda|cpu).amp")
X = torch.ones(2, 2)

REGIONS = {
    "cpu": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), "bfloat16"),
    "cpu, half": (lambda: torch.autocast("cpu", torch.float16), "float16"),
    "cuda": (lambda: torch.autocast("cuda"), "float16"),
    "cuda, by keyword": (
        lambda: torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16, enabled=True),
        "bfloat16",
    ),
    "torch.cuda.amp": (lambda: torch.cuda.amp.autocast(dtype=torch.bfloat16), "bfloat16"),
}


# ---------------------------------------------------------------- autocast


@NO_CUDA
@DEPRECATED
@pytest.mark.parametrize("name", REGIONS)
def test_autocast_region_has_no_effect_and_is_recorded(name):
    region, dtype = REGIONS[name]
    baseline = Baseline()
    with baseline.neutralized(), region():
        assert (X @ X).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        assert not baseline.in_disabled_region()
    assert baseline.own.autocast == dtype
    assert baseline.own.autocast_at.path == __file__


def test_plan_applied_by_the_script_has_no_effect():
    model, x = torch.nn.Linear(4, 4), torch.rand(2, 4)
    expected, baseline = model(x), Baseline()
    with baseline.neutralized():
        handle = precaudit.apply(model, Plan("bfloat16", {"": "bfloat16"}))
        assert torch.equal(model(x), expected)
        handle.remove()
    assert baseline.own == OwnPrecision(plan="bfloat16")
    with precaudit.apply(model, Plan("bfloat16", {"": "bfloat16"})):
        assert not torch.equal(model(x), expected)


@NO_CUDA
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_region_that_switches_autocast_off_is_a_disabled_region(device):
    baseline = Baseline()
    with baseline.neutralized():
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast(device, enabled=False):
                assert baseline.in_disabled_region()
                with torch.autocast("cpu", torch.bfloat16):
                    assert baseline.in_disabled_region()
            assert not baseline.in_disabled_region()
        with torch.autocast(device, enabled=False):
            assert baseline.in_disabled_region()
    assert not baseline.in_disabled_region()


def test_dtype_is_that_of_the_innermost_region():
    baseline = Baseline()
    seen = [baseline.autocast_in_force()]
    with baseline.neutralized():
        with torch.autocast("cpu", torch.bfloat16):
            seen.append(baseline.autocast_in_force())
            with torch.autocast("cpu", enabled=False):
                seen.append(baseline.autocast_in_force())
            seen.append(baseline.autocast_in_force())
        seen.append(baseline.autocast_in_force())
    assert seen == [None, "bfloat16", None, "bfloat16", None]


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        ([("float16", True), ("bfloat16", True)], "float16"),
        ([("bfloat16", True), ("float16", True)], "float16"),
        ([("bfloat16", True), ("float16", False)], "bfloat16"),
        ([("float16", False), ("bfloat16", True)], "bfloat16"),
    ],
)
def test_region_that_trains_with_the_narrowest_format_is_reported(regions, told):
    baseline = Baseline()
    with baseline.neutralized():
        for dtype, trains in regions:
            with torch.set_grad_enabled(trains), torch.autocast("cpu", getattr(torch, dtype)):
                pass
    assert baseline.own.autocast == told


def test_a_region_left_by_an_exception():
    baseline = Baseline()
    with baseline.neutralized():
        with pytest.raises(ZeroDivisionError), torch.autocast("cpu", enabled=False):
            raise ZeroDivisionError
        assert not baseline.in_disabled_region()


def test_decorators():
    baseline = Baseline()
    with baseline.neutralized():

        @torch.autocast("cpu", torch.bfloat16)
        def forward(x):
            return x @ x

        assert forward(X).dtype == torch.float32
    assert baseline.own.autocast == "bfloat16"


@pytest.mark.parametrize("reentrant", [True, False])
def test_region_of_checkpointing_does_not_count_as_disabled(reentrant):
    """It restores the region that it saw, which was off."""
    baseline, seen = Baseline(), []

    def forward(x):
        seen.append((baseline.in_disabled_region(), baseline.autocast_in_force()))
        return x.exp()

    with baseline.neutralized():
        checkpoint(forward, X.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert seen == [(False, None), (False, None)]


@NO_CUDA
def test_autocast_is_restored():
    with pytest.raises(ZeroDivisionError), Baseline().neutralized():
        raise ZeroDivisionError
    with torch.autocast("cpu", torch.bfloat16):
        assert (X @ X).dtype == torch.bfloat16


# ---------------------------------------------------------------- GradScaler


@NO_CUDA
@DEPRECATED
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.amp.GradScaler("cpu"), Scaler(2.0**16, 2000, True)),
        (lambda: torch.amp.GradScaler("cpu", 128.0), Scaler(128.0, 2000, True)),
        (lambda: torch.amp.GradScaler("cpu", growth_interval=5), Scaler(2.0**16, 5, True)),
        (lambda: torch.cuda.amp.GradScaler(init_scale=4.0), Scaler(4.0, 2000, True)),
        (lambda: torch.amp.GradScaler("cpu", enabled=False), None),
    ],
)
def test_scalers_are_disabled_and_recorded(make, expected):
    baseline = Baseline()
    with baseline.neutralized():
        scaler = make()
        assert not scaler.is_enabled()
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = model.bias.item()
        loss = model(X).sum()
        assert torch.equal(scaler.scale(loss), loss)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert model.bias.item() == pytest.approx(before - 2.0)
        assert scaler.get_scale() == 1.0
        scaler.load_state_dict(scaler.state_dict())
    assert baseline.own.grad_scaler == expected
    assert (baseline.seen().left_off is not None) == (expected is None)


@NO_CUDA
@pytest.mark.parametrize(("kind", "used"), [(torch.amp.GradScaler, False), (ShardedGradScaler, True)])
def test_a_scaler_that_scales_no_loss_is_known(kind, used):
    """One with a method of its own, which isn't seen, has the benefit of the doubt."""
    baseline = Baseline()
    with baseline.neutralized():
        kind("cpu")
        torch.nn.Linear(2, 1)(X).sum().backward()
    assert baseline.own.grad_scaler.used is used


@pytest.mark.parametrize(("asked", "left_off"), [("fp16", "accelerate"), ("no", None)])
def test_the_float16_that_accelerate_ignores_is_recorded(asked, left_off, monkeypatch):
    state = SimpleNamespace(AcceleratorState=type("State", (), {"_shared_state": {"_mixed_precision": asked}}))
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    assert Baseline().seen().left_off == left_off
