"""Float8 linear layers against torch's own casts and its own `_scaled_mm`, which runs on CPUs, too."""

import json

import pytest
import torch
from torch import nn

from precaudit.api import load_plan
from precaudit.execution import float8
from precaudit.execution.apply import apply
from precaudit.execution.rounding import rounding_for, scaled
from precaudit.model import Plan
from precaudit.reporting.serialize import dump_plan

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def leaves(rows=32, summed=64, out=48):
    generator = torch.Generator().manual_seed(3)
    spread = torch.logspace(-3, 3, rows).unsqueeze(1)
    x = torch.randn(rows, summed, generator=generator) * spread
    w = torch.randn(out, summed, generator=generator) * torch.logspace(-2, 2, out).unsqueeze(1)
    g = torch.randn(rows, out, generator=generator) / spread
    return x.bfloat16().requires_grad_(), w.bfloat16().requires_grad_(), g.bfloat16()


def by_hand(values, dtype, dim=None):
    """Through torch's own cast, one row after another along `dim`."""
    limit = torch.finfo(dtype).max

    def cast(row):
        scale = limit / row.abs().max()
        return (row * scale).clamp(-limit, limit).to(dtype).float() / scale

    values = values.detach().float()
    return cast(values) if dim is None else torch.stack([cast(r) for r in values.unbind(1 - dim)], dim=1 - dim)


@pytest.mark.parametrize("by_row", [False, True])
def test_every_product_scales_its_own_operands_along_what_it_sums(by_row):
    x, w, g = leaves()
    float8.linear(x, w, by_row=by_row).backward(g)
    along, across = (1, 0) if by_row else (None, None)
    y = by_hand(x, E4M3, along) @ by_hand(w, E4M3, along).t()
    close = {"rtol": 2**-8, "atol": 1e-6}
    torch.testing.assert_close(float8.linear(x, w, by_row=by_row).float(), y, **close)
    torch.testing.assert_close(x.grad.float(), by_hand(g, E5M2, along) @ by_hand(w, E4M3, across), **close)
    torch.testing.assert_close(w.grad.float(), by_hand(g, E5M2, across).t() @ by_hand(x, E4M3, across), **close)


def test_rows_of_different_scales_need_row_wise_scaling():
    x, w, _ = leaves()
    exact = (x @ w.t()).float()

    def worst(by_row):
        error = (float8.linear(x, w, by_row=by_row).float() - exact).norm(dim=1) / exact.norm(dim=1)
        return float(error.detach().max())

    assert worst(by_row=True) < 0.2
    assert worst(by_row=False) > 0.5


@pytest.mark.parametrize("forward", ["float8_e4m3", "float8_e5m2"])
def test_tensor_wise_it_is_what_the_emulation_by_casts_computes(forward):
    x, w, g = leaves()
    rounding = rounding_for(forward)
    y = rounding.result(rounding.operand(x) @ rounding.operand(w).t())
    expected = (y, *torch.autograd.grad(y, (x, w), g))
    z = float8.linear(x, w, forward=forward)
    for got, want in zip((z, *torch.autograd.grad(z, (x, w), g)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("rows", [32, 33, 1])
def test_torchs_own_product_gives_the_same(by_row, rows):
    x, w, g = leaves(rows)
    results = {}
    for multiply in (float8.in_float32, float8.on_tensor_cores):
        y = float8.linear(x, w, by_row=by_row, multiply=multiply)
        results[multiply] = (y, *torch.autograd.grad(y, (x, w), g))
    for emulated, native in zip(*results.values(), strict=True):
        assert emulated.shape == native.shape
        error = (emulated - native).detach().float().norm() / emulated.detach().float().norm()
        assert float(error) < 2**-8


def test_sizes_that_no_kernel_takes_are_computed_in_float32():
    x, w, _ = leaves(out=47)
    y = float8.linear(x, w, multiply=float8.on_tensor_cores)
    assert torch.equal(y, float8.linear(x, w))
    assert torch.equal(
        float8.linear(x, w, forward="float8_e5m2", multiply=float8.on_tensor_cores),
        float8.linear(x, w, forward="float8_e5m2"),
    )


def test_the_products_asked_of_torch_are_those_it_takes(monkeypatch):
    asked = []

    def product(a, b, *, scale_a, scale_b, out_dtype):
        asked.append((a.dtype, b.dtype))
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert all(size % 16 == 0 for size in (*a.shape, *b.shape))
        assert scale_a.shape == (a.shape[0], 1)
        assert scale_b.shape == (1, b.shape[1])
        assert out_dtype == torch.bfloat16
        return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    x, w, g = leaves(rows=33)
    float8.linear(x, w, by_row=True, multiply=float8.on_tensor_cores).backward(g)
    assert asked == [(E4M3, E4M3), (E5M2, E4M3), (E5M2, E4M3)]


def test_shapes_bias_and_dtypes_are_those_of_linear():
    x, w, bias = torch.randn(2, 3, 16), torch.randn(5, 16), torch.randn(5)
    y = float8.linear(x, w, bias, by_row=True)
    assert y.shape == (2, 3, 5)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, float8.linear(x, w, by_row=True) + bias.bfloat16())
    assert float8.linear(torch.randn(16), w).shape == (5,)


def test_it_can_be_differentiated_twice():
    x, w, _ = leaves()
    (gradient,) = torch.autograd.grad(float8.linear(x, w, by_row=True).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert w.grad.isfinite().all()
    assert w.grad.abs().sum() > 0


def test_nonfinite_values_are_kept():
    x, w, _ = leaves()
    with torch.no_grad():
        x[3, 5] = torch.inf
    y = float8.linear(x, w, by_row=True)
    assert y[3].isnan().all()
    assert y[:3].isfinite().all()
    assert scaled(torch.tensor([torch.inf, 1.0]), "float8_e4m3")[0].float().isnan().tolist() == [True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("by_row", [False, True])
def test_tensor_cores_agree_with_float32_on_rounded_operands(by_row):
    x, w, g = (t.detach().cuda().requires_grad_() for t in leaves())
    if float8.multiplier(x.device) is float8.in_float32:
        pytest.skip("this device has no float8")
    for emulated, native in zip(
        *(
            (y := float8.linear(x, w, by_row=by_row, multiply=m), *torch.autograd.grad(y, (x, w), g))
            for m in (float8.in_float32, float8.on_tensor_cores)
        ),
        strict=True,
    ):
        error = (emulated - native).detach().float().norm() / emulated.detach().float().norm()
        assert float(error) < 2**-7


# ---------------------------------------------------------------- plans


def model_and_plan(scaling, default="float8_e4m3"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 16))
    return model, Plan(default=default, modules={"0": default, "1": "bfloat16", "2": default}, float8_scaling=scaling)


def by_definition(model, x, by_row):
    first, _, last = model
    hidden = torch.tanh(float8.linear(x, first.weight, first.bias, by_row=by_row))
    return float8.linear(hidden, last.weight, last.bias, by_row=by_row).float()


@pytest.mark.parametrize("execution", ["native", "emulated"])
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_a_plan_runs_linear_layers_in_float8_however_it_is_executed(execution, scaling):
    model, plan = model_and_plan(scaling)
    x = torch.randn(8, 32) * torch.logspace(-2, 2, 8).unsqueeze(1)
    with apply(model, plan, execution=execution):
        y = model(x)
        gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    z = by_definition(model, x, scaling == "row")
    assert float((y - z).detach().norm() / z.detach().norm()) < 0.005
    for got, want in zip(gradients, torch.autograd.grad(z.square().sum(), list(model.parameters())), strict=True):
        assert float((got - want).norm() / want.norm()) < 0.15
    other = by_definition(model, x, scaling != "row")
    assert float((y - other).detach().norm()) > 10 * float((y - z).detach().norm())


def test_float64_stays_float64():
    model, plan = model_and_plan("row")
    with apply(model.double(), plan, execution="emulated"):
        assert model(torch.randn(4, 32, dtype=torch.float64)).dtype == torch.float64


def test_a_plan_keeps_its_scaling_on_disk(tmp_path):
    _, plan = model_and_plan("row")
    (tmp_path / "plan.json").write_text(json.dumps(dump_plan(plan)))
    assert load_plan(tmp_path / "plan.json").float8_scaling == "row"
    older = {key: value for key, value in dump_plan(plan).items() if key != "float8_scaling"}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert load_plan(tmp_path / "older.json").float8_scaling == "tensor"


@pytest.mark.parametrize("by_row", [False, True])
def test_a_batch_without_rows_passes_as_an_expert_gets_it(by_row):
    x, w = torch.empty(0, 16, requires_grad=True), torch.randn(32, 16, requires_grad=True)
    result = float8.linear(x, w, by_row=by_row)
    assert result.shape == (0, 32)
    result.sum().backward()
    assert not w.grad.any()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("hip", "capability", "native"), [(None, (9, 0), True), (None, (8, 0), False), ("6.4", (9, 4), False)]
)
def test_tensor_cores_multiply_float8_where_they_take_it(hip, capability, native, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (float8.multiplier(torch.device("cuda")) is float8.on_tensor_cores) == native
    assert float8.multiplier(torch.device("cpu")) is float8.in_float32
