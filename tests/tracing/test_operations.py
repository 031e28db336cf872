"""What an operation's record says beside its values: its error alone, constants, whole numbers, its line."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from traced import tracing
from training_styles import Wrapping, numbers

from precaudit.execution.rounding import quantize, round_mantissa
from precaudit.instrument.torch_function import Call
from precaudit.planning.rules import bans
from precaudit.tracing.integers import integer_amax
from precaudit.tracing.merging import with_half_results
from precaudit.tracing.ops import mark_half
from precaudit.tracing.shadow import error_of, local_errors, repeatable, smaller_addend

FORMATS = ("bfloat16", "float16", "tf32", "float8_e4m3")


def rms(difference, exact):
    return (difference.double().square().sum() / exact.double().square().sum()).sqrt().item()


def shadowed(function, *inputs):
    model = Wrapping(function, lin=nn.Linear(4, 4))
    with tracing(shadowed=lambda step: True, formats=FORMATS) as traced:
        model(*inputs)
    return model, traced


def half(x, dtype=torch.bfloat16):
    return x.detach().to(dtype).float()


# ---------------------------------------------------------------- local errors


def test_local_error_of_a_product_in_each_format():
    model, traced = shadowed(lambda self, x: self.lin(x), numbers(0, 8, 4))
    x, w, b = numbers(0, 8, 4), model.lin.weight.detach(), model.lin.bias.detach()
    exact = F.linear(x, w, b)
    low = {
        "bfloat16": half(F.linear(half(x), half(w), half(b))),
        "float16": F.linear(*(half(t, torch.float16) for t in (x, w, b))).half().float(),
        "tf32": F.linear(round_mantissa(x, 10), round_mantissa(w, 10), b),
        "float8_e4m3": half(F.linear(*(quantize(half(t), "float8_e4m3") for t in (x, w)), half(b))),
    }
    errors = traced.op("lin", "linear").local_error
    for name in FORMATS:
        assert errors[name] == pytest.approx(rms(low[name] - exact, exact), rel=1e-6)
    assert errors["float16"] < errors["bfloat16"] < errors["float8_e4m3"]


def test_only_half_inputs_are_rounded_for_local_errors():
    model, traced = shadowed(lambda self, x: torch.stack([self.lin(x).tanh(), x.tanh()]), numbers(0, 8, 4))
    h = model.lin(numbers(0, 8, 4)).detach()
    calls = [slot for slot in traced.tracer.ops.values() if slot.op == "tanh"]
    expected = (h.bfloat16().tanh().float() - h.tanh()).double()
    assert calls[0].local_error["bfloat16"] == pytest.approx(rms(expected, h.tanh()), rel=1e-6)
    assert calls[1].local_error["bfloat16"] == 0.0


def test_float32_operations_err_by_their_input_only():
    model, traced = shadowed(lambda self, x: self.lin(x).softmax(-1), numbers(0, 8, 4))
    h = model.lin(numbers(0, 8, 4)).detach()
    expected = rms(half(h).softmax(-1) - h.softmax(-1), h.softmax(-1))
    assert traced.op("", "softmax").local_error["bfloat16"] == pytest.approx(expected, rel=1e-6)


def test_overflow_is_an_infinite_local_error():
    _, traced = shadowed(lambda self, x: (self.lin(x) * 1e5).square(), 100 * numbers(0, 8, 4))
    errors = traced.op("", "square").local_error
    assert errors["float16"] == math.inf
    assert errors["bfloat16"] < 0.02


def test_the_largest_error_of_several_calls_counts():
    def function(self, x):
        h = self.lin(x)
        return (h + 1000.0) - 1000.0 + ((h + 1.0) - 1.0)

    _, traced = shadowed(function, numbers(0, 8, 4))
    slots = [slot.local_error["bfloat16"] for slot in traced.tracer.ops.values() if slot.op == "sub"]
    assert len(slots) == 2
    assert traced.op("", "sub").local_error["bfloat16"] == max(slots)


def test_float32_calls_are_ignored_beside_half_ones():
    """A float32 bias keeps a sum with half logits in float32, where it is not absorbed."""

    def function(self, x):
        h = self.lin(x)
        return (h + h.flip(0)) + torch.full((4,), 1e-4)

    _, traced = shadowed(function, numbers(0, 8, 4))
    slots = {slot.half: slot.local_error["bfloat16"] for slot in traced.tracer.ops.values() if slot.op == "add"}
    assert slots[False] > 1 > slots[True]
    assert traced.op("", "add").local_error["bfloat16"] == slots[True]


def test_absorbed_addend_that_depends_on_the_other_is_no_loss():
    """The cube in a GELU vanishes beside a small input, and tells nothing that the input doesn't; a branch does."""
    torch.manual_seed(0)
    x = 0.1 * torch.randn(32, 64)
    cube = 0.0447 * x**3
    for addend, lost in ((cube, False), (cube[torch.randperm(32)], True), (torch.full_like(x, 1e-4), True)):
        errors = local_errors(Call(torch.add, (x.bfloat16(), addend.bfloat16()), {}), ("bfloat16",))
        assert (errors["bfloat16"].relative > 0.25) is lost
        assert errors["bfloat16"].error > 0


@pytest.mark.parametrize(
    ("hidden", "elsewhere", "lost"),
    [(-1e9, 0.0, False), (-1e4, 0.5, False), (1e4, 0.0, True), (-1e4, -300.0, True), (-1e4, -1e4, True)],
)
def test_scores_that_an_additive_mask_hides_are_no_loss(hidden, elsewhere, lost):
    """A softmax makes zero of them whatever they were. Other large addends are no masks."""
    torch.manual_seed(0)
    scores, mask = torch.randn(8, 4, 16), torch.full((8, 1, 16), elsewhere)
    mask[:, :, 9:] = hidden
    mark_half([scores, mask])
    errors = local_errors(Call(torch.add, (scores, mask), {}), ("bfloat16",))
    assert (errors["bfloat16"].relative > 0.25) is lost


@pytest.mark.parametrize(("noise", "lost"), [(0.03, False), (0.1, True)])
def test_dependence_of_addends_with_noise(noise, lost):
    """Of what is a function but for noise, whose share of the variance is known, they differ by twice that share."""
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    addend = 1e-4 * ((1 - noise) ** 0.5 * x + noise**0.5 * torch.randn(64, 64))
    errors = local_errors(Call(torch.add, (x.bfloat16(), addend.bfloat16()), {}), ("bfloat16",))
    assert (errors["bfloat16"].relative > 0.25) is lost


@pytest.mark.parametrize(("factor", "cancels"), [(-1.004, True), (0.9, False)])
def test_cancelling_addends_are_measured_by_their_sum(factor, cancels):
    def function(self, x):
        h = self.lin(x)
        return h + h * factor

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert (traced.op("", "add").local_error["bfloat16"] > 0.25) is cancels


def test_late_calls_of_a_loop_are_measured():
    def function(self, x):
        drive = self.lin(x)
        state = drive * 0
        for _ in range(600):
            state = state + drive / 512
        return state

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert traced.op("", "add").local_error["bfloat16"] > 0.5


def test_nonfinite_float32_results_have_no_local_error():
    _, traced = shadowed(lambda self, x: self.lin(x).mul(0).log(), numbers(0, 8, 4))
    assert traced.op("", "log").local_error == {}


@pytest.mark.parametrize(
    ("function", "kwargs", "expected"),
    [
        (torch.relu, {}, True),
        (torch.relu_, {}, False),
        (torch.Tensor.__iadd__, {}, False),
        (torch.Tensor.__add__, {}, True),
        (torch.Tensor.__invert__, {}, True),
        (torch.add, {"out": 1}, False),
        (F.dropout, {}, False),
        (torch.batch_norm, {}, False),
        (torch.fused_moving_avg_obs_fake_quant, {}, False),
        (torch.ops.aten._fused_moving_avg_obs_fq_helper, {}, False),
        (torch.ops.aten._native_batch_norm_legit.default, {}, False),
        (torch.ops.aten.add, {}, True),
        (torch.sort, {}, True),
    ],
)
def test_repeatable_operations(function, kwargs, expected):
    assert repeatable(Call(function, (), kwargs)) is expected


def test_in_place_operation_on_a_buffer_runs_once():
    @torch.library.custom_op("precaudit_tests::count", mutates_args=("calls",))
    def count(x: torch.Tensor, calls: torch.Tensor) -> torch.Tensor:
        calls += 1
        return x.clone()

    calls = torch.zeros(1)
    with torch.no_grad():
        expected = count(torch.ones(2), calls)
    _, traced = shadowed(lambda self, x: self.lin(x) * count(expected, calls).mean(), numbers(0, 8, 4))
    assert calls.item() == 2
    assert traced.op("", "mul").local_error


def test_local_errors_draw_no_random_numbers():
    def noisy(x):
        return x + torch.rand_like(x)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert local_errors(Call(noisy, (torch.ones(3),), {}), ("bfloat16",)) == {}
    assert torch.equal(torch.get_rng_state(), state)


def test_unsupported_operation_has_no_local_error():
    _, traced = shadowed(lambda self, x: torch.linalg.inv(self.lin(x)), numbers(0, 4, 4))
    assert traced.op("", "linalg_inv").calls == 1
    assert "bfloat16" not in traced.op("", "linalg_inv").local_error


# ---------------------------------------------------------------- inputs


def test_input_amax():
    _, traced = shadowed(lambda self, x: self.lin(x) @ torch.full((4, 4), -70000.0), numbers(0, 8, 4))
    assert traced.op("", "matmul").input_amax == 70000.0


def test_out_argument_is_not_an_input():
    def forward(self, x):
        return self.lin(torch.mm(x, x, out=torch.full((4, 4), 1e30)))

    _, traced = shadowed(forward, numbers(0, 4, 4))
    product = traced.op("", "mm")
    assert product.input_amax < 10
    assert 0 < product.local_error["bfloat16"] < 0.1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 4096.0, 300.0], 4096.0),
        ([1.0, 200.0], None),
        ([1.5, 4096.0], None),
        ([1.0, math.inf], None),
        ([-4096.0, 3.0], 4096.0),
        ([5000.0], None),
        ([], None),
    ],
)
def test_integers_are_recognized(values, expected):
    assert integer_amax([torch.tensor(values), torch.tensor([0.5, 0.25])]) == expected


def test_integers_exact_in_the_coarsest_format_are_ignored():
    positions = torch.arange(20.0)
    for formats, expected in ((("float8_e4m3",), 19.0), (("bfloat16", "float16"), None)):
        model = Wrapping(lambda self, x: self.lin(x * 0) + positions[:, None] @ torch.ones(1, 4), lin=nn.Linear(4, 4))
        with tracing(shadowed=lambda step: True, formats=formats) as traced:
            model(torch.ones(20, 4))
        assert traced.op("", "matmul").integer_amax == expected


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_input_of_several_calls_counts(order):
    model = Wrapping(lambda self, x: self.lin(x), lin=nn.Linear(4, 4))
    with tracing(shadowed=lambda step: True, formats=FORMATS) as traced:
        for largest in (1e5, 1.0)[::order]:
            model(torch.full((2, 4), largest))
    assert traced.op("lin", "linear").input_amax == 1e5


def test_calls_beyond_the_last_slot_are_measured():
    def function(self, x):
        h = self.lin(x)
        for _ in range(12):
            h = h + 0.5
        h = (h + 1e-12) @ torch.eye(4)
        for _ in range(12):
            h = h @ torch.eye(4)
        return (h * 1e5) @ torch.eye(4)

    _, traced = shadowed(function, torch.ones(8, 4))
    assert traced.op("", "add").constants == (1e-12, 0.5)
    assert traced.op("", "matmul").input_amax > 1e4


def test_half_and_float32_calls_have_separate_slots():
    def function(self, x):
        for _ in range(12):
            x = x + 1e5
        h = self.lin(x * 0)
        for _ in range(12):
            h = h + 1.0
        return h

    _, traced = shadowed(function, torch.ones(8, 4))
    found = traced.op("", "add")
    assert found.calls == 24
    assert found.half
    assert found.half_amax < 20


def test_numbers_without_fractions_are_not_positions():
    assert integer_amax([2.0**24 * (1 + torch.rand(8)), torch.tensor([0.0, 3e9, -5e8])]) is None
    assert integer_amax([torch.tensor([12.0, 3e9, 40.0])]) == 3e9


def test_parameters_are_not_positions():
    assert integer_amax([nn.Parameter(torch.tensor([1.0, 4096.0]))]) is None


def grey_values(*shape):
    return torch.randint(0, 4096, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(
    ("layer", "values", "expected"),
    [
        (nn.Conv2d(2, 3, 3), grey_values(2, 2, 8, 8), None),
        (nn.Linear(4, 3), grey_values(16, 4), None),
        (nn.Linear(2, 3), torch.stack([19000.0 + torch.arange(16), grey_values(16)], -1), 19015.0),
        (nn.Linear(2, 3), torch.stack([torch.full((16,), 300.0), grey_values(16)], -1), None),
        (nn.Linear(2, 3).requires_grad_(False), grey_values(16, 2), "whole"),
    ],
    ids=["pixels", "features", "days since 1970", "a constant that is exact", "frequencies"],
)
def test_integer_measurements_are_not_positions(layer, values, expected):
    """A layer with trained weights weighs them; whether they are positions shows in the channel that varies least."""
    expected = float(values.max()) if expected == "whole" else expected
    assert integer_amax([values, layer.weight, layer.bias]) == expected


def test_positions_in_a_product_are_recognized():
    def function(self, x):
        angles = torch.outer(torch.arange(4096.0), torch.ones(4))
        return self.lin(torch.arange(4096.0)[:, None] @ torch.ones(1, 4)) + angles

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert traced.op("", "matmul").integer_amax == 4095.0


def test_absorbed_scalar_is_no_loss():
    """An eps in a buffer protects from zero; that a large value absorbs it is what it is for."""

    def add(*addends):
        return local_errors(Call(torch.add, addends, {}), ("bfloat16",))["bfloat16"].relative

    values = half(numbers(0, 64, 4) + 3)
    assert add(values, torch.tensor(1e-3)) < 0.01
    assert add(values.bfloat16(), half(1e-3 * numbers(1, 64, 4)).bfloat16()) > 0.5


@pytest.mark.parametrize("shape", [(64, 8), (8,), (64, 1), (1, 8), (3, 64, 8)])
def test_what_may_be_absorbed_of_a_sum_is_its_smaller_addend_at_every_place(shape):
    large = 100 + numbers(0, 64, 8)
    small = numbers(1, *shape)
    total = large + small
    assert smaller_addend([large, small], total) == pytest.approx(float(small.expand_as(total).square().sum()))
    assert smaller_addend([small, large], total) == smaller_addend([large, small], total)
    assert smaller_addend([large, large.square()], total) == 0.0  # says nothing of its own
    assert smaller_addend([large, 0 * small], total) == 0.0


@pytest.mark.parametrize(("shape", "tolerance"), [((1,), 1e-5), ((300,), 1e-5), ((3, 100), 1e-5), ((5, 1000), 0.1)])
def test_a_product_of_many_rows_errs_as_a_sample_of_them_does(shape, tolerance):
    x, linear = half(numbers(0, *shape, 8)), nn.Linear(8, 8)
    exact, low = linear(x).detach(), half(F.linear(x, half(linear.weight), half(linear.bias)))
    found = local_errors(Call(F.linear, (x, linear.weight, linear.bias), {}), ("bfloat16",))["bfloat16"]
    assert found.relative == pytest.approx(rms(low - exact, exact), rel=tolerance)
    named = Call(F.linear, (), {"input": x, "weight": linear.weight, "bias": linear.bias})
    for call in (Call(F.linear, (x, linear.weight, linear.bias), {}), named):
        assert error_of(low, call).relative == pytest.approx(found.relative)
    assert local_errors(named, ("bfloat16",))["bfloat16"] == found


@pytest.mark.parametrize("largest", [0, 1, 2])
@pytest.mark.parametrize("named", [0, 1, 2, 3])
def test_inputs_of_attention_are_its_factors_not_its_mask(largest, named):
    factors = [numbers(i, 1, 2, 4, 4) * (1000.0 if i == largest else 1.0) for i in range(3)]
    by_name = dict(list(zip(("query", "key", "value"), factors, strict=True))[3 - named :])

    def function(self, x):
        mask = torch.full((4, 4), -1e9).triu(1)
        return self.lin(x) * F.scaled_dot_product_attention(*factors[: 3 - named], **by_name, attn_mask=mask)

    _, traced = shadowed(function, numbers(0, 4, 4))
    assert traced.op("", "scaled_dot_product_attention").input_amax == float(factors[largest].abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_records_tell_the_dtype_that_was_computed_in(dtype):
    model = Wrapping(lambda self, x: self.lin(x).tanh(), lin=nn.Linear(4, 4)).to(dtype)
    with tracing() as traced:
        model(numbers(0, 8, 4).to(dtype)).sum().backward()
    records = [traced.layer("lin"), traced.op("lin", "linear"), traced.op("", "tanh")]
    assert traced.op("", "tanh").dtype == str(dtype).removeprefix("torch.")
    assert {record.dtype for each in records for record in each.tensors} == {str(dtype).removeprefix("torch.")}
    assert [record.role for record in records[1].tensors] == ["activation", "activation_grad"]


# ---------------------------------------------------------------- FLOPs


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("einsum", lambda x: torch.einsum("ij,kj->ik", x, x)),
        ("einsum", lambda x: torch.einsum("ij,jk,kl->il", x, x.mT, x)),
        ("tensordot", lambda x: torch.tensordot(x, x, dims=([1], [1]))),
        ("inner", lambda x: torch.inner(x, x)),
        ("linalg_multi_dot", lambda x: torch.linalg.multi_dot([x, x.mT, x])),
        ("linalg_matrix_power", lambda x: torch.linalg.matrix_power(x @ x.mT, 3)),
        ("matmul", lambda x: torch.complex(x, x) @ torch.complex(x, x).mT),
        ("linear", lambda x: F.linear(x, x)),
        ("relu", lambda x: x.relu()),
    ],
)
def test_flops_are_those_that_torch_counts_while_it_computes(name, function, capsys):
    x = numbers(0, 8, 4)
    with FlopCounterMode(display=False) as counter:
        function(x)
    before = 2 * 8 * 8 * 4 if name == "linalg_matrix_power" else 0
    _, traced = shadowed(lambda self, x: self.lin(x) * 0 + function(x).sum().real, x)
    assert traced.op("", name).flops == (counter.get_total_flops() - before or None)
    assert not capsys.readouterr().out


# ---------------------------------------------------------------- constants, lines, shapes


def test_constants_are_the_extremes_of_scalar_arguments():
    def function(self, x):
        h = self.lin(x)
        h = h.masked_fill(h > 0, -1e9) + 1e-12
        return h + 0.5

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert traced.op("", "masked_fill").constants == (1e9, 1e9)
    assert traced.op("", "add").constants == (1e-12, 0.5)
    assert traced.op("lin", "linear").constants is None


def assigned(h, value):
    h[h > 0] = value
    return h


FILLS = {
    "__setitem__": assigned,
    "fill": lambda h, value: (h * 1).fill_(value),
    "pad": lambda h, value: torch.nn.functional.pad(h, (1, 0), value=value),
}


@pytest.mark.parametrize("name", FILLS)
def test_a_constant_that_float16_cannot_hold_is_found_where_it_is_written(name):
    _, traced = shadowed(lambda self, x: FILLS[name](self.lin(x) * 2, -1e9).softmax(-1), numbers(0, 8, 4))
    assert traced.op("", name).constants == (1e9, 1e9)
    assert [(ban.rule, ban.op, ban.format) for ban in bans(traced.trace, ("float16", "bfloat16"))] == [
        ("PA103", name, "float16")
    ]


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("value", [-6e4, float("-inf"), 0.0])
def test_what_float16_can_hold_is_written_unrecorded(name, value):
    _, traced = shadowed(lambda self, x: FILLS[name](self.lin(x) * 2, value).mean(), numbers(0, 8, 4))
    assert name not in {op.op for op in traced.trace.ops}


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_alpha_of_an_addition_is_not_a_constant(factor):
    def function(self, x):
        h = self.lin(x)
        return torch.sub(h, h / factor, alpha=factor) + torch.addmm(h, h.t(), h, alpha=factor, beta=factor).mean()

    _, traced = shadowed(function, numbers(0, 4, 4))
    assert traced.op("", "sub").constants is None
    assert traced.op("", "addmm").constants is None


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5])
def test_a_mask_of_the_largest_number_of_a_half_tensor_s_dtype_follows_that_dtype(share):
    def function(self, x):
        h = self.lin(x)
        return h.masked_fill(h > 0, share * torch.finfo(h.dtype).min).softmax(-1)

    _, traced = shadowed(function, numbers(0, 8, 4))
    mask = traced.op("", "masked_fill")
    assert mask.follows_dtype
    assert mask.constants is None
    assert [ban.rule for ban in bans(traced.trace, ("float16", "bfloat16"))] == []


def added(h, low):
    return h + torch.full(h.shape, low, dtype=h.dtype).triu(1)


def added_twice(h, low):
    h += torch.full_like(h, low).triu(1) + torch.zeros_like(h).masked_fill(h > 0, low)
    return h


def the_lower(h, low):
    return h + torch.minimum(torch.full(h.shape, low).triu(1), torch.full(h.shape, low).tril(-1)).to(h.dtype)


def chosen(h, low):
    return torch.where(h > 0, torch.tensor(low, dtype=h.dtype), h) * 0.99


@pytest.mark.parametrize(
    ("mask", "op"), [(added, "add"), (added_twice, "add"), (the_lower, "minimum"), (the_lower, "add"), (chosen, "mul")]
)
def test_what_is_computed_from_such_a_mask_follows_the_dtype_too(mask, op):
    def function(self, x):
        h = self.lin(x)
        return mask(h, torch.finfo(h.dtype).min * 0.9).softmax(-1).div(2)

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert traced.op("", op).follows_dtype
    assert not traced.op("", "div").follows_dtype
    # A run in half shows which of these are half: the mask too, where it is made in the dtype that was read.
    half = frozenset(("", "", each.op, each.location) for each in (*traced.trace.ops, *traced.trace.lines))
    assert bans(with_half_results(traced.trace, half), ("float16", "bfloat16")) == ()


def test_what_a_low_run_showed_of_a_line_is_not_of_another_with_the_same_operation():
    """A softmax's float32 has an eps and large values that are no matter; the eps of what is cast back is lost."""

    def function(self, x):
        h = self.lin(x)
        wide = h.softmax(-1) * 1e9 + 1e-12
        back = h.float().square().to(h.dtype)
        total = back.sum(-1, keepdim=True).to(h.dtype) + 1e-9
        return back / total - wide

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert not traced.op("", "add").half
    line = next(each.location for each in traced.trace.lines if each.op == "add" and each.constants == (1e-9, 1e-9))
    found = with_half_results(traced.trace, frozenset({("", "", "add", line)}))
    (add,) = (each for each in found.ops if each.op == "add")
    assert (add.calls, add.constants, add.location) == (2, (1e-9, 1e-9), line)
    assert add.half_amax < 100 < add.tensor("activation").stats.amax
    assert [(ban.rule, ban.op, ban.location) for ban in bans(found, ("float16",))] == [("PA104", "add", line)]
    assert with_half_results(traced.trace, frozenset({("", "", "add", None)})) == traced.trace


def test_what_is_computed_from_the_largest_float32_does_not_follow_a_dtype():
    def function(self, x):
        h = self.lin(x)
        return (h + torch.full_like(h, torch.finfo(torch.float32).min * 0.9)).softmax(-1)

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert not traced.op("", "add").follows_dtype
    assert {ban.rule for ban in bans(traced.trace, ("float16",))} >= {"PA103"}


@pytest.mark.parametrize("dtype_of", [lambda x, h: torch.float32, lambda x, h: x.dtype])
def test_mask_of_the_largest_float32_does_not_follow_a_dtype(dtype_of):
    def function(self, x):
        h = self.lin(x)
        return h.masked_fill(h > 0, torch.finfo(dtype_of(x, h)).min).softmax(-1)

    _, traced = shadowed(function, numbers(0, 8, 4))
    assert not traced.op("", "masked_fill").follows_dtype
    found = [(ban.rule, ban.format) for ban in bans(traced.trace, ("float16", "bfloat16"))]
    assert found == [("PA103", "float16"), ("PA103", "bfloat16")]


def test_the_location_is_the_script_s_own_line():
    def function(self, x):
        small = torch.tanh(x)
        large = torch.tanh(x * 0) + torch.relu(self.lin(x) * 3)  # the line of relu
        return small + large

    _, traced = shadowed(function, numbers(0, 8, 4))
    location = traced.op("", "relu").location
    with open(__file__) as stream:
        line = stream.read().splitlines()[location.line - 1]
    assert location.path == __file__
    assert line.endswith("# the line of relu")


def test_the_location_of_several_calls_is_that_of_the_largest_result():
    def function(self, x):
        small = torch.relu(x)
        large = torch.relu(x * 100)  # the largest
        return self.lin(small + large)

    _, traced = shadowed(function, numbers(0, 8, 4))
    with open(__file__) as stream:
        line = stream.read().splitlines()[traced.op("", "relu").location.line - 1]
    assert line.endswith("# the largest")


def test_measures_have_the_line_of_their_extreme_call():
    def function(self, x):
        h = self.lin(x)
        large = (h + 300) + 1e4  # the largest result and constant
        lost = (h + 1e-12) + 0.5  # the smallest constant
        return large - 300, (h + 200) - (h + 200.1), lost  # what loses its result

    _, traced = shadowed(function, numbers(0, 8, 4))
    add, sub = traced.op("", "add"), traced.op("", "sub")
    places = {"largest": add.place("largest"), "smallest": add.place("smallest"), "lost": sub.place("bfloat16")}
    with open(__file__) as stream:
        lines = stream.read().splitlines()
    assert {name: lines[place.line - 1].partition("# ")[2] for name, place in places.items()} == {
        "largest": "the largest result and constant",
        "smallest": "the smallest constant",
        "lost": "what loses its result",
    }
    assert "largest" not in add.places
    lost = {ban.location.line for ban in bans(traced.trace, ("bfloat16",)) if (ban.rule, ban.op) == ("PA106", "sub")}
    assert lost == {places["lost"].line}


def test_the_largest_gradient_has_its_own_line():
    def function(self, x):
        large = torch.relu(self.lin(x) * 100)
        steep = torch.relu(self.lin(x))  # the largest gradient
        return large + steep * 1000

    with tracing() as traced:
        Wrapping(function, lin=nn.Linear(4, 4))(numbers(0, 8, 4)).sum().backward()
    with open(__file__) as stream:
        line = stream.read().splitlines()[traced.op("", "relu").place("gradient").line - 1]
    assert line.endswith("# the largest gradient")


def test_float32_values_beside_half_ones_are_ignored():
    def function(self, x):
        h = self.lin(x) + 0.5
        wide = h.float().exp() * 0 + 1e6
        return h, wide + 1e-12

    _, traced = shadowed(function, numbers(0, 8, 4))
    add = traced.op("", "add")
    assert (add.calls, add.half, add.constants) == (3, True, (0.5, 0.5))
    assert add.half_amax < 100 < add.tensor("activation").stats.amax
    assert [ban for ban in bans(traced.trace, ("float16",)) if ban.op == "add"] == []


def test_shapes_dtypes_and_categories():
    _, traced = shadowed(lambda self, x: self.lin(x).softmax(-1).relu(), numbers(0, 8, 4))
    linear = traced.op("lin", "linear")
    assert linear.shapes == ((8, 4), (4, 4), (4,))
    assert (linear.dtype, linear.category, linear.half) == ("float32", "lower", True)
    assert (traced.op("", "softmax").category, traced.op("", "softmax").half) == ("fp32", False)
    assert (traced.op("", "relu").category, traced.op("", "relu").half) == ("other", False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_own_low_precision_is_recorded(dtype):
    model = nn.Linear(4, 4).to(dtype)
    with tracing() as traced:
        model(numbers(0, 8, 4).to(dtype)).float().sum().backward()
    assert traced.trace.low_dtypes == (str(dtype).removeprefix("torch."),)
    assert traced.layer("").tensor("weight_grad", "weight").dtype == str(dtype).removeprefix("torch.")


def test_attention_mask_is_not_a_factor():
    def function(self, x):
        q = self.lin(x)[None, None]
        mask = torch.full((8, 8), -1e30).triu(1)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)[0, 0]

    _, traced = shadowed(function, numbers(0, 8, 4))
    attention = traced.op("", "scaled_dot_product_attention")
    assert attention.input_amax < 100
    assert attention.integer_amax is None


def test_near_zero_result_in_one_call_is_no_error():
    def function(self, x):
        return torch.stack([self.lin(row) for row in x])

    x = numbers(0, 6, 4)
    model, traced = shadowed(function, x)
    exact = F.linear(x, model.lin.weight, model.lin.bias).detach()
    low = half(F.linear(half(x), half(model.lin.weight), half(model.lin.bias))).detach()
    assert traced.op("lin", "linear").local_error["bfloat16"] == pytest.approx(rms(low - exact, exact), rel=1e-4)


def test_a_jagged_batch_has_the_shape_of_its_rows():
    model = nn.Linear(8, 4)
    with tracing() as traced:
        batch = torch.nested.nested_tensor([numbers(0, 3, 8), numbers(1, 5, 8)], layout=torch.jagged)
        model(batch).values().sum().backward()
    assert traced.op("", "linear").shapes[:2] == ((8, 8), (4, 8))
