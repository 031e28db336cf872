"""Plans from small traces: the lowest format that fits, a reason for everything else, a scale that goes with it."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trace_samples import layer, op, stats, trace

from precaudit.formats import FORMATS
from precaudit.model import OpFormat, Repair, TensorRecord
from precaudit.planning.planner import Choices, build_plan, default_format, fallback, without_loss_scale
from precaudit.planning.rules import bans

DEFAULT = ("bfloat16", "float16", "tf32")


def planned(ops, formats=DEFAULT, layers=None, maxima=(), **choices):
    seen = trace(ops, layers, maxima)
    return build_plan(seen, Choices(formats, "h100", bans(seen, formats), **choices))


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (("float16", "bfloat16"), "bfloat16"),
        (("float16", "tf32"), "float16"),
        (("tf32",), "tf32"),
        (("float8_e4m3", "bfloat16"), "float8_e4m3"),
        ((), "float32"),
    ],
)
def test_the_default_is_the_preferred_format(formats, expected):
    assert default_format(formats) == expected
    assert planned([op(shapes=((32, 64), (128, 64)))], formats).default == expected


@pytest.mark.parametrize(
    ("current", "allowed", "banned", "expected"),
    [
        ("float16", DEFAULT, (), "bfloat16"),
        ("float16", ("float16",), (), "float32"),
        ("bfloat16", DEFAULT, (), "tf32"),
        ("bfloat16", ("bfloat16", "float16"), (), "float16"),
        ("float8_e4m3", ("float8_e4m3", "bfloat16"), (), "bfloat16"),
        ("tf32", DEFAULT, (), "float32"),
        ("float32", DEFAULT, (), "float32"),
        ("float16", DEFAULT, ("bfloat16", "tf32", "float32"), "float32"),
    ],
)
def test_fallback(current, allowed, banned, expected):
    assert fallback(current, allowed, banned) == expected


def test_without_bans_everything_is_at_the_default():
    plan = planned([op(fqn="a"), op(fqn="b")])
    assert plan.modules == {"a": "bfloat16", "b": "bfloat16"}
    assert plan.ops == ()
    assert plan.because == {}
    assert plan.types == {"a": "Linear", "b": "Linear"}
    assert plan.loss_scale.mode == "none"
    assert plan.target == "h100"
    assert plan.matmul_precision == "highest"


def test_a_plan_without_a_low_product_is_float32s():
    """What follows float32 products is float32 whatever the plan calls it, so nothing would be verified."""
    ops = [op(fqn="a", amax=1e39), op("relu", "b", category="other", half=True), op("softmax", "c", category="fp32")]
    plan = planned(ops, ("bfloat16",))
    assert (plan.default, set(plan.modules.values()), plan.ops) == ("float32", {"float32"}, ())
    assert not plan.is_low_precision
    assert "1e+39" in plan.because["a"]
    assert "no matrix product" in plan.because["b"]
    assert not planned([op("relu", "b", category="other", half=True)]).is_low_precision


def test_default_is_the_format_of_the_products():
    ops = [op(fqn="a", integer_amax=300.0), op("relu", "b", category="other", half=True)]
    plan = planned(ops, ("bfloat16", "tf32"))
    assert (plan.default, plan.modules, plan.matmul_precision) == ("tf32", {"a": "tf32", "b": "tf32"}, "high")


def test_the_backward_pass_computes_in_tf32_where_a_module_does():
    """One setting serves the whole backward pass, and the emulation rounds to tf32 in tf32 modules only."""
    assert planned([op()], DEFAULT).matmul_precision == "highest"
    assert planned([op()], ("tf32",)).matmul_precision == "high"
    mixed = planned([op(fqn="a"), op(fqn="b", integer_amax=300.0)], ("bfloat16", "tf32"))
    assert mixed.modules == {"a": "bfloat16", "b": "tf32"}
    assert mixed.matmul_precision == "high"


def test_a_leaf_moves_as_a_whole():
    plan = planned([op(fqn="a"), op(fqn="b", amax=1e9)], ("float16", "bfloat16"), default="float16")
    assert plan.modules == {"a": "float16", "b": "bfloat16"}
    assert plan.ops == ()
    assert set(plan.because) == {"b"}
    assert "1e+09" in plan.because["b"]


def test_in_a_module_with_children_only_the_operation_moves():
    ops = [op("matmul", fqn="block", amax=1e9), op(fqn="block.lin")]
    layers = [layer("block", leaf=False), layer("block.lin")]
    plan = planned(ops, ("float16", "bfloat16"), layers, default="float16")
    assert plan.modules == {"block.lin": "float16", "block": "float16"}
    assert plan.ops == (OpFormat("block", "matmul", "bfloat16"),)
    assert set(plan.because) == {"block:matmul"}


def test_a_module_that_writes_in_place_moves_with_what_it_writes_to():
    ops = [op("matmul", fqn="block"), op("__setitem__", "block", category="promote", half=True, constants=(1e9, 1e9))]
    layers = [layer("block", leaf=False), layer("block.lin")]
    plan = planned([*ops, op(fqn="block.lin")], ("float16", "bfloat16"), layers, default="float16")
    assert plan.modules == {"block.lin": "float16", "block": "float32"}
    assert plan.ops == ()


def test_non_products_move_to_float32():
    square = op("square", fqn="norm", amax=1e9, category="other", half=True)
    assert planned([square], ("float16", "bfloat16"), default="float16").modules == {"norm": "float32"}


def test_a_ban_in_another_format_changes_nothing():
    assert planned([op(amax=1e9)], ("bfloat16", "float16")).modules == {"a": "bfloat16"}


def test_the_fallback_avoids_every_ban_of_the_module():
    """One operation leaves bfloat16; where it goes, the other operation of the same leaf must be allowed too."""
    positions = op("matmul", fqn="a", integer_amax=1000.0)
    large = op("linear", fqn="a", amax=1e6)
    for ops in ([positions, large], [large, positions]):
        assert planned(ops).modules == {"a": "tf32"}


def test_an_exceptions_reason_is_the_worst_one():
    """A result close to the maximum is a note; an operand beyond it, which the same product takes, is an error."""
    made = planned([op("matmul", "a", 5.79e4, input_amax=5.13e5), op("linear", "b")], ("float16",))
    assert made.because == {"a": "matmul takes inputs up to 5.13e+05; float16's maximum is 65504"}


def test_the_fallback_asks_for_the_bans_of_no_other_module():
    positions, large = op("matmul", fqn="a", integer_amax=1000.0), op("linear", fqn="b", amax=1e6)
    assert planned([positions, large], ("bfloat16", "float16")).modules == {"a": "float16", "b": "bfloat16"}


@pytest.mark.parametrize(("left", "expected"), [(0.02, "tf32"), (0.03, "float32"), (0.24, "float32")])
def test_what_lost_its_result_moves_to_where_it_keeps_it(left, expected):
    """Not to a format in which it misses the limit by a little: a router would still choose others' experts."""
    router = op("linear", local_error={"bfloat16": 0.3, "tf32": left, "float16": left})
    assert planned([router]).modules == {"a": expected}


def test_beside_products_of_a_leaf_only_the_operation_moves():
    """Its products would be lost with it, in a model without modules inside all of them."""
    ops = [op("linear", fqn="a"), op("mul", fqn="a", category="other", half=True, amax=1e6)]
    for more in ([], [op("linear", fqn="b")]):
        plan = planned([*ops, *more], ("float16",))
        assert set(plan.modules.values()) == {"float16"}
        assert plan.ops == (OpFormat("a", "mul", "float32"),)


def test_what_loses_its_result_in_place_moves_with_what_it_is_added_to():
    """In float32 alone, `total += x` would still be stored in the half tensor that `zeros_like` has made; a sum by
    index is stored once. Of a model without modules inside nothing may be left in low precision then."""
    absorbs = {"category": "promote", "half": True, "in_place": True, "local_error": {"bfloat16": 0.9}}
    layers = [layer("pool", leaf=False), layer("pool.lin"), layer("out")]
    beside = [op(fqn="pool.lin"), op(fqn="out")]
    plan = planned([*beside, op("add", fqn="pool", **absorbs)], layers=layers)
    assert (plan.modules["pool"], plan.modules["pool.lin"], plan.ops) == ("float32", "bfloat16", ())
    plan = planned([*beside, op("index_add", fqn="pool", **absorbs)], layers=layers)
    assert (plan.modules["pool"], plan.ops) == ("bfloat16", (OpFormat("pool", "index_add", "float32"),))
    alone = planned([op(fqn="a"), op("add", fqn="a", **absorbs)])
    assert (alone.modules, alone.ops) == ({"a": "tf32"}, ())
    alone = planned([op(fqn="a"), op("add", fqn="a", **absorbs)], ("bfloat16",))
    assert not alone.is_low_precision


def test_leaves_that_never_ran_are_in_the_plan():
    seen = trace([op(fqn="a")])
    seen = type(seen)(**{**vars(seen), "leaves": ("a", "unused")})
    assert build_plan(seen, Choices(DEFAULT, "h100")).modules == {"a": "bfloat16", "unused": "bfloat16"}


@pytest.mark.parametrize(
    ("formats", "expected"), [(DEFAULT, "float32"), (("float16",), "float32"), (("tf32",), "tf32")]
)
def test_modules_that_never_ran_stay_in_float32(formats, expected):
    found = replace(trace([op(fqn="a")]), leaves=("a", "unused", "sampler"), unseen=("sampler",))
    plan = build_plan(found, Choices(formats, "h100"))
    assert plan.modules == {"a": plan.default, "unused": plan.default, "sampler": expected}
    assert ("never ran" in plan.because.get("sampler", "")) is (expected == "float32")


def test_layers_that_don_t_train_are_not():
    assert planned([op(fqn="a")], layers=[layer("a"), layer("loss", leaf=False, trained=False)]).modules == {
        "a": "bfloat16"
    }


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((32, 64), (128, 64), (128,)), "float8_e4m3"),
        (((32, 60), (128, 60)), "bfloat16"),
        (((32, 64), (10, 64)), "bfloat16"),
        ((), "bfloat16"),
    ],
)
def test_float8_is_for_linear_layers_in_multiples_of_sixteen(shapes, expected):
    plan = planned([op(shapes=shapes)], ("float8_e4m3", "bfloat16"))
    assert plan.modules == {"a": expected}
    assert ("a" in plan.because) == (expected != "float8_e4m3")


ROUNDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c.d"]),
        st.sampled_from(["linear", "matmul", "square", "softmax"]),
        st.sampled_from([1.0, 1e3, 1e5, 1e30]),
        st.sampled_from([None, 300.0, 3000.0]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each[:2],
)


@settings(max_examples=200, deadline=None)
@given(ROUNDS, st.sets(st.sampled_from(["bfloat16", "float16", "tf32", "float8_e4m3"]), min_size=1), st.booleans())
@example([("a", "matmul", 1e5, None), ("a", "linear", 1.0, 300.0)], {"bfloat16", "float16"}, True)
def test_no_plan_breaks_a_ban_and_every_exception_has_a_reason(rounds, formats, leaf):
    kinds = {"linear": "lower", "matmul": "lower", "square": "other", "softmax": "fp32"}
    ops = [
        op(name, fqn, amax, kinds[name], half=kinds[name] != "fp32", integer_amax=whole)
        for fqn, name, amax, whole in rounds
    ]
    layers = [layer(fqn, leaf=leaf) for fqn in dict.fromkeys(each.fqn for each in ops)]
    seen = trace(ops, layers)
    forbidden = bans(seen, FORMATS)
    plan = build_plan(seen, Choices(tuple(formats), "h100", forbidden))
    exceptions = {(each.fqn, each.op): each.format for each in plan.ops}
    for ban in forbidden:
        assert exceptions.get((ban.fqn, ban.op), plan.modules[ban.fqn]) != ban.format
    assert {*plan.modules.values(), *exceptions.values()} <= {*formats, "float32", "bfloat16"}
    for fqn, name in plan.modules.items():
        assert fqn in plan.because or (name == plan.default and plan.is_low_precision)
    for fqn, name in exceptions:
        assert f"{fqn}:{name}" in plan.because


# ---------------------------------------------------------------- repairs


def test_a_repaired_operation_is_an_exception():
    layers = [layer("block", leaf=False), layer("block.lin")]
    plan = planned(
        [op("softmax", "block", category="fp32"), op(fqn="block.lin")],
        layers=layers,
        repairs=(Repair("block", "bfloat16", "float32", "it broke", "softmax"),),
    )
    assert plan.ops == (OpFormat("block", "softmax", "float32"),)
    assert plan.because == {"block:softmax": "it broke"}


def test_a_repaired_module_leaves_what_is_inside_as_it_is():
    layers = [layer("block", leaf=False), layer("block.lin")]
    plan = planned(
        [op("mul", "block", category="other"), op(fqn="block.lin")],
        layers=layers,
        repairs=(Repair("block", "bfloat16", "float32", "its own rounding"),),
    )
    assert plan.modules == {"block": "float32", "block.lin": "bfloat16"}
    assert plan.because == {"block": "its own rounding"}
    assert plan.default == "bfloat16"


def test_a_plan_of_float32_modules_is_a_float32_plan():
    repairs = tuple(Repair(fqn, "bfloat16", "float32", "it raised") for fqn in ("a", "b"))
    plan = planned([op(fqn="a"), op(fqn="b")], repairs=repairs)
    assert set(plan.modules.values()) == {plan.default} == {"float32"}
    assert not plan.is_low_precision


def test_the_whole_module_after_one_of_its_operations():
    layers = [layer("block", leaf=False)]
    plan = planned(
        [op("mul", "block", category="other", half=True)],
        layers=layers,
        repairs=(
            Repair("block", "bfloat16", "float32", "first", "mul"),
            Repair("block", "bfloat16", "float32", "then"),
        ),
    )
    assert plan.ops == ()
    assert plan.modules == {"block": "float32"}


# ---------------------------------------------------------------- the loss scale


def halves(gradients, maxima, formats=("float16", "bfloat16")):
    """A float16 plan for layers with these gradients."""
    layers = [layer(fqn, gradient) for fqn, gradient in gradients.items()]
    ops = [op(fqn=fqn) for fqn in gradients]
    return planned(ops, formats, layers, maxima, default="float16")


def test_bfloat16_needs_no_scale():
    plan = planned([op()], layers=[layer("a", stats(1e-9))], maxima=[math.log2(1e-9)] * 10)
    assert plan.loss_scale.mode == "none"


def test_module_banned_from_bfloat16_needs_no_scale():
    plan = planned([op(fqn="a"), op(fqn="b", integer_amax=300.0)], DEFAULT)
    assert plan.modules == {"a": "bfloat16", "b": "tf32"}
    assert plan.loss_scale.mode == "none"


def test_float16_gets_a_window():
    plan = halves({"a": stats(2.0**-10, 2.0**-20)}, [-10.0] * 10)
    scale = plan.loss_scale
    assert scale.mode == "dynamic"
    low, high = scale.window
    assert low <= high <= 25
    assert scale.init_scale == 2.0 ** (high - 2)
    assert plan.modules == {"a": "float16"}


@pytest.mark.parametrize("stride", [1, 20])
def test_the_growth_interval_counts_the_steps_between_those_that_were_looked_at(stride):
    small = layer("b", stats(2.0**-43, 2.0**-43))  # needs the largest scale that fits
    seen = trace([op(), op("b")], [layer("a", stats(2.0**-10, 2.0**-20)), small])
    seen = replace(seen, maxima=tuple((step, -10 - 0.001 * step) for step in range(0, 401, stride)))
    plan = build_plan(seen, Choices(("float16",), "h100", default="float16"))
    assert plan.loss_scale.growth_interval == pytest.approx(500, abs=1)


def test_a_module_that_no_scale_serves_beside_the_others_leaves_float16():
    gradients = {f"small{i}": stats(2.0**-30, 2.0**-38) for i in range(4)} | {"huge": stats(2.0**12)}
    plan = halves(gradients, [12.0] * 10)
    assert plan.modules == {**{f"small{i}": "float16" for i in range(4)}, "huge": "bfloat16"}
    assert "no single scale" in plan.because["huge"]
    low, high = plan.loss_scale.window
    assert low <= high
    assert plan.loss_scale.init_scale > 2.0**8


@pytest.mark.parametrize("name", ["div", "relu"])
def test_a_module_with_huge_gradients_inside_it_leaves_float16_alone(name):
    """As one that divides by what is nearly zero has: nothing of it is seen in what goes in and out. What a relu stops
    needs no room."""
    gradient = stats(2.0**-6, 2.0**-14)
    inside = op(name, "attend", category="other", half=True)
    inside = replace(inside, tensors=(*inside.tensors, TensorRecord("activation_grad", stats(2.0**30))))
    fqns = ("embed", "attend", "out")
    ops = [op(fqn="embed"), op("matmul", "attend"), inside, op(fqn="out")]
    plan = planned(ops, ("float16",), [layer(fqn, gradient) for fqn in fqns], [30.0] * 10, default="float16")
    alone = "float32" if name == "div" else "float16"
    assert plan.modules == {"embed": "float16", "attend": alone, "out": "float16"}
    assert ("gradients are 2^30" in plan.because.get("attend", "")) is (name == "div")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-30, 12), st.integers(0, 24)), min_size=1, max_size=4),
    st.lists(st.floats(0, 5), min_size=1, max_size=10),
)
def test_modules_leave_float16_until_one_scale_serves_the_rest(tops, below):
    gradients = {f"m{i}": stats(2.0**top, 2.0 ** (top - depth)) for i, (top, depth) in enumerate(tops)}
    loudest = float(max(top for top, _ in tops))
    plan = halves(gradients, [loudest - part for part in below])
    left = [fqn for fqn, name in plan.modules.items() if name == "float16"]
    assert (plan.loss_scale.window is not None) == bool(left)
    assert (plan.loss_scale.mode == "dynamic") == bool(left)


def test_a_plan_whose_last_product_no_scale_serves_is_float32s():
    layers = [layer("a", stats(2.0**14)), layer("b", stats(2.0**-30, 2.0**-38))]
    ops = [op(fqn="a"), op("relu", "b", category="other", half=True)]
    plan = planned(ops, ("float16",), layers, [14.0] * 10)
    assert (plan.default, set(plan.modules.values()), plan.loss_scale.mode) == ("float32", {"float32"}, "none")
    assert "no single scale" in plan.because["a"]


def test_without_gradients_there_is_nothing_to_scale():
    assert halves({"a": None}, []).loss_scale.mode == "none"
    assert halves({"a": stats(1.0)}, []).loss_scale.mode == "none"


def test_a_complex_parameter_leaves_no_format_that_needs_a_loss_scale():
    """GradScaler raises for its gradients: "_amp_foreach_non_finite_check_and_unscale_" not implemented."""
    plain, spectral = (
        replace(layer(fqn), tensors=(TensorRecord("weight", stats(1.0), dtype=dtype),))
        for fqn, dtype in (("a", "float32"), ("s", "complex64"))
    )
    formats = ("bfloat16", "float16", "float32")
    assert without_loss_scale(formats, trace((), (plain,))) == (formats, "")
    left, why = without_loss_scale(formats, trace((), (plain, spectral)))
    assert left == ("bfloat16", "float32")
    assert "complex parameters (s)" in why
