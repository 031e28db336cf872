"""The precision a script chose for itself: noted, and off."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import precaudit
from precaudit.instrument.names import ModuleNames
from precaudit.model import Plan
from precaudit.ownprecision.baseline import Baseline, CastWatch, Float32Mode, eager_only, float32_only
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.tracing.parameters import absorbed_update

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
def test_a_region_does_nothing_and_is_noted(name):
    region, dtype = REGIONS[name]
    baseline = Baseline()
    with baseline.neutralized(), region():
        assert (X @ X).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        assert not baseline.in_island()
    assert baseline.settings["autocast"] == dtype
    assert baseline.settings["autocast_at"]["path"] == __file__


def test_a_plan_that_the_script_applies_does_nothing():
    model, x = torch.nn.Linear(4, 4), torch.rand(2, 4)
    expected, baseline = model(x), Baseline()
    with baseline.neutralized():
        handle = precaudit.apply(model, Plan("bfloat16", {"": "bfloat16"}))
        assert torch.equal(model(x), expected)
        handle.remove()
    assert baseline.settings == {"plan": "bfloat16"}
    with precaudit.apply(model, Plan("bfloat16", {"": "bfloat16"})):
        assert not torch.equal(model(x), expected)


@NO_CUDA
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_region_that_switches_autocast_off_is_an_island(device):
    baseline = Baseline()
    with baseline.neutralized():
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast(device, enabled=False):
                assert baseline.in_island()
                with torch.autocast("cpu", torch.bfloat16):
                    assert baseline.in_island()
            assert not baseline.in_island()
        with torch.autocast(device, enabled=False):
            assert baseline.in_island()
    assert not baseline.in_island()


def test_the_innermost_region_tells_the_dtype():
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
def test_of_several_regions_the_one_that_trains_and_needs_most_is_told(regions, told):
    baseline = Baseline()
    with baseline.neutralized():
        for dtype, trains in regions:
            with torch.set_grad_enabled(trains), torch.autocast("cpu", getattr(torch, dtype)):
                pass
    assert baseline.settings["autocast"] == told


def test_a_region_left_by_an_exception():
    baseline = Baseline()
    with baseline.neutralized():
        with pytest.raises(ZeroDivisionError), torch.autocast("cpu", enabled=False):
            raise ZeroDivisionError
        assert not baseline.in_island()


def test_decorators():
    baseline = Baseline()
    with baseline.neutralized():

        @torch.autocast("cpu", torch.bfloat16)
        def forward(x):
            return x @ x

        assert forward(X).dtype == torch.float32
    assert baseline.settings["autocast"] == "bfloat16"


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpointing_opens_is_no_island(reentrant):
    """It restores the region that it saw, which was off."""
    baseline, seen = Baseline(), []

    def forward(x):
        seen.append((baseline.in_island(), baseline.autocast_in_force()))
        return x.exp()

    with baseline.neutralized():
        checkpoint(forward, X.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert seen == [(False, None), (False, None)]


@NO_CUDA
def test_autocast_is_itself_again_afterwards():
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
        (lambda: torch.amp.GradScaler("cpu"), {"init_scale": 2.0**16, "growth_interval": 2000}),
        (lambda: torch.amp.GradScaler("cpu", 128.0), {"init_scale": 128.0, "growth_interval": 2000}),
        (lambda: torch.amp.GradScaler("cpu", growth_interval=5), {"init_scale": 2.0**16, "growth_interval": 5}),
        (lambda: torch.cuda.amp.GradScaler(init_scale=4.0), {"init_scale": 4.0, "growth_interval": 2000}),
        (lambda: torch.amp.GradScaler("cpu", enabled=False), None),
    ],
)
def test_scalers_are_disabled_and_noted(make, expected):
    baseline = Baseline()
    with baseline.neutralized():
        scaler = make()
        assert not scaler.is_enabled()
        model = nn.Linear(2, 1)
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
    assert baseline.settings.get("grad_scaler") == expected


# ---------------------------------------------------------------- casts


CASTS = {
    "half": lambda: X.half(),
    "bfloat16": lambda: X.bfloat16(),
    "to": lambda: X.to(torch.bfloat16),
    "to, by keyword": lambda: X.to(dtype=torch.float16),
    "to, with a device": lambda: X.to("cpu", torch.float16),
    "type": lambda: X.type(torch.float16),
    "creation": lambda: torch.ones(2, dtype=torch.bfloat16),
    "like": lambda: torch.zeros_like(X, dtype=torch.float16),
    "random": lambda: torch.randn(2, dtype=torch.float16),
    "tensor": lambda: torch.tensor([1.0], dtype=torch.bfloat16),
    "sum": lambda: X.sum(dtype=torch.float16),
    "softmax": lambda: X.softmax(-1, dtype=torch.bfloat16),
    "float8": lambda: X.to(torch.float8_e4m3fn),
    "a layer": lambda: nn.Linear(2, 2, dtype=torch.bfloat16).weight,
    "a model": lambda: nn.Linear(2, 2).half().weight,
    "a model, to": lambda: nn.Linear(2, 2).to(torch.bfloat16).weight,
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_to_low_precision_become_float32(name):
    assert CASTS[name]().dtype != torch.float32
    with Float32Mode():
        assert CASTS[name]().dtype == torch.float32


def test_other_casts_stay():
    with Float32Mode():
        assert X.double().dtype == torch.float64
        assert X.to(torch.int64).dtype == torch.int64
        assert torch.ones(2, dtype=torch.complex64).dtype == torch.complex64
        assert X.to("cpu").dtype == torch.float32


def test_values_and_gradients_are_float32_s():
    with Float32Mode():
        x = torch.full((2,), 1.0 + 2.0**-20, requires_grad=True)
        y = (x.half() * 3).bfloat16()
        assert torch.equal(y, 3 * x)
        y.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 3.0))


def test_the_default_dtype_stays_float32():
    with float32_only():
        torch.set_default_dtype(torch.bfloat16)
        assert torch.ones(2).dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_saved_in_half_is_loaded_as_float32(mmap, tmp_path):
    weight = torch.randn(3, 4).bfloat16()
    torch.save({"w": nn.Parameter(weight), "view": weight.T[1:], "n": torch.arange(3)}, tmp_path / "w.pt")
    with float32_only():
        loaded = torch.load(tmp_path / "w.pt", mmap=mmap)
    assert [each.dtype for each in loaded.values()] == [torch.float32, torch.float32, torch.int64]
    assert torch.equal(loaded["w"], weight.float())
    assert torch.equal(loaded["view"], weight.T[1:].float())
    assert isinstance(loaded["w"], nn.Parameter)
    assert torch.load(tmp_path / "w.pt")["w"].dtype == torch.bfloat16


def test_bits_that_are_read_as_half_are_widened():
    weight = torch.randn(4, 6).bfloat16()
    bits, data = weight.view(torch.int16), bytearray(weight.view(torch.uint8).numpy().tobytes())
    with float32_only():
        read = [bits.view(torch.bfloat16), bits.view(dtype=torch.bfloat16)]
        read.append(torch.frombuffer(data, dtype=torch.bfloat16).view(4, 6))
        assert bits.view(torch.int32).shape == (4, 3)
    for values in read:
        assert values.dtype == torch.float32
        assert torch.equal(values, weight.float())


def test_a_default_of_float64_is_the_script_s_business():
    try:
        with float32_only():
            torch.set_default_dtype(torch.float64)
            assert torch.ones(2).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_where_a_script_casts_is_noted():
    settings = {}
    with CastWatch(settings):
        X.half()
        X.to(torch.bfloat16)
        X.double()
        assert X.half().dtype == torch.float16
    assert {cast["dtype"] for cast in settings["casts"]} == {"float16", "bfloat16"}
    assert {cast["path"] for cast in settings["casts"]} == {__file__}
    assert len(settings["casts"]) == 3


# ---------------------------------------------------------------- compilers


def test_casts_of_precaudit_are_no_casts_of_the_script_under_any_number_of_modes():
    settings = {}
    with CastWatch(settings), OwnLowPrecision(ModuleNames(), {}):
        absorbed_update(X, 2 * X)
        assert settings == {}
        X.half()
    assert [place["dtype"] for place in settings["casts"]] == ["float16"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_everything_runs_eagerly():
    calls = []

    def function(x):
        calls.append(1)
        return x * 2

    with eager_only():
        assert torch.compile(function) is function
        assert torch.compile(mode="max-autotune")(function) is function
        model = nn.Linear(2, 2)
        assert torch.compile(model, dynamic=True) is model
        model.compile()
        model(X)
        assert torch.jit.script(function) is function
    assert torch.compile is not None
    assert torch.jit._state._enabled.enabled


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_what_torch_scripts_for_itself_is_scripted():
    """As its rules for forward-mode derivatives, which it makes at the first of them."""
    made = {"__name__": "torch._decomp.decompositions_for_jvp", "torch": torch, "function": _doubled}
    with eager_only():
        exec("scripted = torch.jit.script(function)", made)
        assert torch.jit.script(_doubled) is _doubled
    assert made["scripted"].graph is not None


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize(
    "cast", [torch.Tensor.half, torch.Tensor.float, lambda t: t.to(torch.float16), lambda t: t.type_as(t.bfloat16())]
)
def test_a_cast_that_became_none_is_a_copy_still(cast):
    """Or an average begun as `weight.half()` would be the weight itself."""
    weight = torch.ones(3)
    with float32_only():
        copy = cast(weight)
        weight.add_(1)
        assert weight.to("cpu") is weight
    assert copy.tolist() == [1, 1, 1]
