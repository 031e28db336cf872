"""A script's own casts: noted, or turned into float32."""

import pytest
import torch
from torch import nn

from precaudit.instrument.names import ModuleNames
from precaudit.ownprecision.float32 import CastWatch, Float32Mode, casts_recorded, float32_only
from precaudit.ownprecision.records import OwnPrecision
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.tracing.parameters import absorbed_update

X = torch.ones(2, 2)

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


def test_casts_to_other_dtypes_are_kept():
    with Float32Mode():
        assert X.double().dtype == torch.float64
        assert X.to(torch.int64).dtype == torch.int64
        assert torch.ones(2, dtype=torch.complex64).dtype == torch.complex64
        assert X.to("cpu").dtype == torch.float32


def test_values_and_gradients_equal_float32():
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
def test_half_checkpoint_is_loaded_as_float32(mmap, tmp_path):
    weight = torch.randn(3, 4).bfloat16()
    torch.save({"w": nn.Parameter(weight), "view": weight.T[1:], "n": torch.arange(3)}, tmp_path / "w.pt")
    with float32_only():
        loaded = torch.load(tmp_path / "w.pt", mmap=mmap)
    assert [each.dtype for each in loaded.values()] == [torch.float32, torch.float32, torch.int64]
    assert torch.equal(loaded["w"], weight.float())
    assert torch.equal(loaded["view"], weight.T[1:].float())
    assert isinstance(loaded["w"], nn.Parameter)
    assert torch.load(tmp_path / "w.pt")["w"].dtype == torch.bfloat16


def test_view_as_half_is_widened():
    weight = torch.randn(4, 6).bfloat16()
    bits, data = weight.view(torch.int16), bytearray(weight.view(torch.uint8).numpy().tobytes())
    with float32_only():
        read = [bits.view(torch.bfloat16), bits.view(dtype=torch.bfloat16)]
        read.append(torch.frombuffer(data, dtype=torch.bfloat16).view(4, 6))
        assert bits.view(torch.int32).shape == (4, 3)
    for values in read:
        assert values.dtype == torch.float32
        assert torch.equal(values, weight.float())


def test_default_dtype_of_float64_is_kept():
    try:
        with float32_only():
            torch.set_default_dtype(torch.float64)
            assert torch.ones(2).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_lines_of_casts_are_recorded():
    settings = OwnPrecision()
    with CastWatch(settings):
        X.half()
        X.to(torch.bfloat16)
        X.double()
        assert X.half().dtype == torch.float16
    assert {cast.dtype for cast in settings.casts} == {"float16", "bfloat16"}
    assert {cast.place.path for cast in settings.casts} == {__file__}
    assert len(settings.casts) == 3


def test_an_empty_tensor_in_half_is_no_cast():
    """As readers of checkpoints make one of each dtype at their import."""
    settings = OwnPrecision()
    with CastWatch(settings):
        assert torch.empty(0, dtype=torch.float16).element_size() == 2
        assert X[:0].half().dtype == torch.float16
    assert not settings.casts


def test_a_low_default_dtype_is_recorded_as_a_cast():
    """Nothing else in the script may tell why its weights are low."""
    settings = OwnPrecision()
    try:
        with casts_recorded(settings):
            torch.set_default_dtype(torch.float32)
            assert not settings.casts
            torch.set_default_dtype(torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    (cast,) = settings.casts
    assert (cast.dtype, cast.place.path) == ("bfloat16", __file__)


def test_own_casts_are_not_recorded_under_several_modes():
    settings = OwnPrecision()
    with CastWatch(settings), OwnLowPrecision(ModuleNames(), OwnPrecision()):
        absorbed_update(X, 2 * X)
        assert settings == OwnPrecision()
        X.half()
    assert [cast.dtype for cast in settings.casts] == ["float16"]


@pytest.mark.parametrize(
    "cast", [torch.Tensor.half, torch.Tensor.float, lambda t: t.to(torch.float16), lambda t: t.type_as(t.bfloat16())]
)
def test_ignored_cast_still_copies(cast):
    """Or an average begun as `weight.half()` would be the weight itself."""
    weight = torch.ones(3)
    with float32_only():
        copy = cast(weight)
        weight.add_(1)
        assert weight.to("cpu") is weight
    assert copy.tolist() == [1, 1, 1]
