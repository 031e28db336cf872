"""Every rule, on both sides of its threshold."""

import math
from dataclasses import replace

import pytest
import torch
from trace_samples import layer, op, trace

from precaudit.execution import float8
from precaudit.formats import FORMATS
from precaudit.planning.rules import HEADROOM, LOCAL_ERROR_LIMIT, RULES, bans, large_constant
from precaudit.tracing.merging import with_half_results

HALF, BRAIN, SMALL = FORMATS["float16"], FORMATS["bfloat16"], FORMATS["float8_e4m3"]


def found(*ops, formats=("float16",)):
    return [(ban.rule, ban.op, ban.format, ban.severity) for ban in bans(trace(list(ops)), formats)]


def test_operation_with_small_values_has_no_ban():
    assert found(op(input_amax=10.0), op("softmax", category="fp32"), formats=tuple(FORMATS)) == []


@pytest.mark.parametrize(
    ("amax", "severity"),
    [(65504 / HEADROOM - 1, None), (65504 / HEADROOM, "note"), (65519.0, "note"), (65520.0, "error"), (1e30, "error")],
)
def test_pa101_results_that_overflow(amax, severity):
    expected = [("PA101", "linear", "float16", severity)] if severity else []
    assert found(op(amax=amax)) == expected
    assert found(op(amax=amax), formats=("bfloat16", "tf32", "float32")) == []


def test_pa101_only_where_the_result_is_half():
    assert found(op("softmax", amax=1e9, category="fp32"), op("add", amax=1e9, category="other", half=False)) == []
    assert found(op("relu", amax=1e9, category="other", half=True)) == [("PA101", "relu", "float16", "error")]


@pytest.mark.parametrize(("amax", "follows", "told"), [(3e38, True, 0), (3e38, False, 1), (1e9, True, 1)])
def test_pa101_is_not_about_a_mask_that_is_as_low_as_its_dtype_goes(amax, follows, told):
    """`masked_fill(mask, torch.finfo(x.dtype).min)` is the format's own lowest in each."""
    assert len(found(op("masked_fill", amax=amax, category="other", half=True, follows_dtype=follows))) == told


def test_pa101_counts_the_maximum_of_each_format():
    assert found(op(amax=1e38), formats=("bfloat16", "float16")) == [
        ("PA101", "linear", "bfloat16", "note"),
        ("PA101", "linear", "float16", "error"),
    ]


@pytest.mark.parametrize(
    ("name", "fix"), [("float16", "run it in bfloat16 or float32"), ("bfloat16", "run it in float32")]
)
def test_what_overflows_is_not_advised_the_format_that_it_overflows(name, fix):
    assert [ban.fix for ban in bans(trace([op(amax=3.4e38), op(input_amax=3.4e38)]), (name,))] == [fix, fix]


@pytest.mark.parametrize(
    ("amax", "said"),
    [
        (32752.0, "within a factor of 2.0 of float16's maximum 65504"),
        (65504.0, "within a factor of 1.0 of float16's maximum 65504"),
        (65520.0, "above float16's maximum of 65504"),
    ],
)
def test_what_comes_close_to_the_maximum_is_not_said_to_pass_it(amax, said):
    (ban,) = bans(trace([op(amax=amax)]), ("float16",))
    assert ban.why.endswith(said)


@pytest.mark.parametrize("target", ["float8_e4m3", "float8_e5m2"])
def test_what_is_scaled_before_it_is_rounded_has_no_largest_magnitude(target):
    """The error of a float8 product is the same at every scale, so no range forbids it; lost integers do."""
    assert found(op(amax=1e6, input_amax=1e6, constants=(1e-12, 1e9)), formats=(target,)) == []
    assert [rule for rule, *_ in found(op(integer_amax=300.0), formats=(target,))] == ["PA105"]
    x, weight = torch.randn(64, 32), torch.randn(16, 32)
    errors = []
    for scale in (1.0, 2.0**10, 2.0**20):
        exact = torch.nn.functional.linear(x * scale, weight)
        rounded = float8.linear(x * scale, weight, forward=target, by_row=False, multiply=float8.in_float32)
        errors.append(float((rounded.float() - exact).norm() / exact.norm()))
    assert max(errors) == pytest.approx(min(errors), rel=1e-3)
    assert 0.01 < max(errors) < 0.2


@pytest.mark.parametrize(("amax", "severity"), [(16000.0, None), (20000.0, "note"), (70000.0, "error")])
def test_pa102_operands_that_overflow(amax, severity):
    expected = [("PA102", "linear", "float16", severity)] if severity else []
    assert found(op(input_amax=amax)) == expected
    assert found(op("softmax", category="fp32", input_amax=amax)) == []


@pytest.mark.parametrize(("constant", "banned"), [(1e9, True), (65520.0, True), (65000.0, False), (math.inf, False)])
def test_pa103_constants_that_overflow(constant, banned):
    mask = op("masked_fill", category="other", half=True, constants=(constant, constant))
    assert found(mask) == ([("PA103", "masked_fill", "float16", "error")] if banned else [])
    assert found(op("masked_fill", category="other", half=False, constants=(constant, constant))) == []
    assert found(mask, formats=("bfloat16",)) == []


@pytest.mark.parametrize(("name", "masks"), [("masked_fill", True), ("where", True), ("add", False), ("clamp", False)])
def test_only_what_fills_is_told_how_to_mask(name, masks):
    """An offset that is added to all values is no mask."""
    large = op(name, category="other", half=True, constants=(9e4, 9e4))
    assert ("mask" in large_constant(large, HALF).fix) is masks


@pytest.mark.parametrize("name", ["mul", "div", "pow", "gt", "lerp"])
def test_scalar_factors_have_no_ban(name):
    scaled = op(name, category="other", half=True, constants=(1e-12, 1e9))
    assert found(scaled) == []


@pytest.mark.parametrize(("amax", "rules"), [(1e9, ["PA103"]), (2e9, ["PA101", "PA103"])])
def test_mask_constant_is_reported_once(amax, rules):
    masked = op("masked_fill", amax=amax, category="other", half=True, constants=(1e9, 1e9))
    assert [rule for rule, *_ in found(masked)] == rules


@pytest.mark.parametrize(
    ("name", "constant", "half", "banned"),
    [
        ("add", 1e-12, True, True),
        ("add", 2.0**-25, True, True),
        ("add", 2.0**-24, True, False),
        ("add", 1e-12, False, False),
        ("clamp_min", 1e-12, True, True),
        ("dropout", 1e-12, True, False),
    ],
)
def test_pa104_constants_that_vanish(name, constant, half, banned):
    eps = op(name, category="other", half=half, constants=(constant, 1.0))
    assert found(eps) == ([("PA104", name, "float16", "warning")] if banned else [])
    assert found(eps, formats=("bfloat16",)) == []


@pytest.mark.parametrize(
    ("name", "bound", "formats"),
    [
        ("clamp", 1 - 1e-4, ["bfloat16", "float16"]),
        ("clamp_max", 0.999, ["bfloat16"]),
        ("clamp", 0.99, []),
        ("clamp", 1.0, []),
        ("mul", 1 - 1e-4, []),
    ],
)
def test_pa104_bounds_that_are_one(name, bound, formats):
    clamped = op(name, category="other", half=True, constants=(1e-4, bound))
    told = bans(trace([clamped]), ("bfloat16", "float16", "tf32"))
    assert [(ban.rule, ban.format) for ban in told] == [("PA104", format_name) for format_name in formats]
    assert not bans(trace([replace(clamped, half=False)]), ("bfloat16", "float16"))


@pytest.mark.parametrize(
    ("whole", "formats"),
    [(256.0, ()), (257.0, ("bfloat16",)), (2048.0, ("bfloat16",)), (4095.0, ("bfloat16", "float16", "tf32"))],
)
def test_pa105_integers_that_alias(whole, formats):
    positions = op("matmul", integer_amax=whole)
    assert [ban.format for ban in bans(trace([positions]), ("bfloat16", "float16", "tf32"))] == list(formats)


@pytest.mark.parametrize(
    ("error", "banned"), [(0.249, False), (LOCAL_ERROR_LIMIT, True), (0.251, True), (math.inf, True)]
)
def test_pa106_operations_that_lose_their_result_alone(error, banned):
    alone = op("sub", category="other", half=True, local_error={"bfloat16": error, "float16": 0.0})
    assert found(alone, formats=("bfloat16", "float16")) == ([("PA106", "sub", "bfloat16", "error")] if banned else [])
    assert found(op("sub", category="other", half=False, local_error={"bfloat16": error}), formats=("bfloat16",)) == []


def test_pa106_says_what_is_lost():
    lost = op("sub", category="other", half=True, local_error={"bfloat16": 0.5})
    gone = op("sub", category="other", half=True, local_error={"bfloat16": math.inf})
    (first,), (second,) = (bans(trace([each]), ("bfloat16",)) for each in (lost, gone))
    assert "is off by 50%" in first.why
    assert "becomes non-finite" in second.why


def test_pa107_what_autocast_refuses():
    refused = op("binary_cross_entropy", category="banned", half=False)
    assert found(refused, formats=("bfloat16", "float16", "tf32")) == [
        ("PA107", "binary_cross_entropy", "bfloat16", "error"),
        ("PA107", "binary_cross_entropy", "float16", "error"),
    ]


def test_a_ban_says_where_and_how_large():
    (ban,) = bans(trace([op(amax=1e6, fqn="encoder.fc")]), ("float16",))
    assert (ban.fqn, ban.location.path, ban.location.line, ban.value) == ("encoder.fc", "train.py", 7, 1e6)
    assert "1e+06" in ban.why
    assert "65504" in ban.why
    assert ban.fix


def test_untrained_models_have_no_bans():
    ops = [op(fqn="teacher", amax=1e9)]
    assert bans(trace(ops, layers=[layer("teacher", trained=False)]), ("float16",)) == ()


def test_rules_are_looked_at_in_order():
    awful = op("matmul", amax=1e9, input_amax=1e9, integer_amax=1e9, local_error={"float16": 1})
    rules = [ban.rule for ban in bans(trace([awful]), ("float16",))]
    assert rules == sorted(rules)
    assert len(rules) == 4
    assert len(RULES) == 8


def test_float32_is_never_forbidden():
    awful = op("matmul", amax=1e30, input_amax=1e30, integer_amax=1e9)
    assert bans(trace([awful]), ("float32",)) == ()
    assert HALF.maximum < 1e30 < BRAIN.maximum
    assert SMALL.maximum == 448


def test_what_a_low_run_showed_to_be_half_is_judged_as_half():
    """`y.to(x.dtype)` is a cast to float32 in a trace of float32."""
    seen = replace(trace([op("mul", fqn="loss", amax=1e6, category="other", half=False)]), models=("model",))
    assert bans(seen, ["float16"]) == ()
    line = seen.ops[0].location
    others = {("model", "loss", "add", line), ("model", "net", "mul", line), ("model", "loss", "mul", None)}
    assert with_half_results(seen, frozenset(others)) == seen
    (ban,) = bans(with_half_results(seen, frozenset({("model", "loss", "mul", line)})), ["float16"])
    assert (ban.rule, ban.fqn, ban.op, ban.value) == ("PA101", "loss", "mul", 1e6)
