"""What compare finds, beside brute force and by its symmetries."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_reports import gpt, profile, stats_of, with_autocast

from precaudit.catalogue.metrics import METRICS
from precaudit.comparison.compare import compare
from precaudit.comparison.headroom import binades
from precaudit.comparison.markdown import render_markdown
from precaudit.comparison.noise import amax_noise, independent_values
from precaudit.comparison.ranges import center, distance
from precaudit.comparison.rows import rows
from precaudit.comparison.terminal import render_terminal
from precaudit.model import (
    Exponents,
    Finding,
    Layer,
    LossScale,
    Op,
    OpFormat,
    Plan,
    Report,
    TensorRecord,
    TensorStats,
    Verification,
)

counts = st.lists(st.integers(0, 2**40), max_size=6).map(tuple)
magnitudes = st.floats(allow_nan=True, allow_infinity=True)
stats = st.builds(
    TensorStats,
    numel=st.integers(0, 2**50),
    amax=magnitudes,
    amin_nonzero=magnitudes,
    sum_squares=magnitudes,
    zeros=st.integers(0, 9),
    nonfinite=st.integers(0, 3),
    exponents=st.builds(Exponents, st.integers(-1100, 1100), counts),
)
roles = st.sampled_from(["weight", "activation", "activation_grad", "weight_grad", "update", "optimizer_state"])
records = st.builds(
    TensorRecord, roles, stats, st.sampled_from(["", "weight", "bias"]), st.sampled_from(["float32", "float16"])
)
names = st.text("ab.0", min_size=1, max_size=4)
layers = st.builds(
    Layer,
    names,
    st.sampled_from(["Linear", "ReLU"]),
    st.integers(0, 3),
    st.integers(0, 5),
    st.lists(records, max_size=3).map(tuple),
)
formats = st.sampled_from(["float32", "tf32", "bfloat16", "float16", "float8_e4m3"])
windows = st.none() | st.tuples(st.integers(-9, 30), st.integers(-9, 30))
reports = st.builds(
    Report,
    layers=st.lists(layers, max_size=5, unique_by=lambda layer: layer.fqn).map(tuple),
    findings=st.lists(
        st.builds(
            Finding,
            rule=st.sampled_from(["PA101", "PA202"]),
            severity=st.sampled_from(["error", "warning", "note"]),
            message=st.text(max_size=3),
            suggestion=st.just(""),
            fqn=st.none() | names,
            fingerprint=st.sampled_from(["", "x", "y"]),
        ),
        max_size=3,
    ).map(tuple),
    plan=st.builds(
        Plan,
        modules=st.dictionaries(names, formats, max_size=3),
        ops=st.lists(st.builds(OpFormat, names, st.just("matmul"), formats), max_size=2).map(tuple),
        loss_scale=st.builds(LossScale, mode=st.sampled_from(["none", "dynamic"]), window=windows),
    ),
    verification=st.builds(
        Verification, verdict=st.sampled_from(["pass", "fail", "inconclusive", "screened", "not_run"])
    ),
    environment=st.just({"device": "cuda:0"}),
    performance=st.dictionaries(
        st.sampled_from(["step_seconds", "peak_memory_bytes"]),
        st.dictionaries(st.sampled_from(["float32", "plan"]), st.floats() | st.none()),
    ),
)


@given(reports)
@settings(max_examples=100, deadline=None)
def test_a_report_does_not_differ_from_itself(report):
    comparison = compare(report, report)
    assert comparison.changes == ()
    assert comparison.matched == len(report.layers)


@pytest.mark.parametrize(("parameters", "what"), [(0, "Gate"), (1, "Gate with 1 parameter")])
def test_layers_are_described_by_the_parameters_that_they_have(parameters, what):
    base, gate = profile(gpt(), 0), Layer("gate", "Gate", parameters, 1_000, ())
    head = replace(base, layers=(*base.layers, gate))
    assert [change.message for change in compare(base, head).changes] == [f"{what} is new"]


@given(reports, reports)
@settings(max_examples=100, deadline=None)
def test_added_one_way_is_removed_the_other_way(base, head):
    forth, back = compare(base, head), compare(head, base)

    def named(comparison, metric):
        return sorted(change.fqn for change in comparison.changes if change.metric == metric)

    assert len(named(forth, "layers_added")) == len(named(back, "layers_removed"))
    assert len(named(forth, "layers_removed")) == len(named(back, "layers_added"))
    assert all(change.metric in METRICS and change.value >= 0 for change in forth.changes)


@given(st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=30), st.integers(-20, 20))
def test_shift_by_a_power_of_two_is_measured_exactly(values, k):
    base = stats_of(np.array(values))
    head = base.shift(k)
    apart = distance(base.exponents, head.exponents)
    if base.exponents.total:
        assert binades(base.amax, head.amax) == pytest.approx(k)
        assert apart == pytest.approx(abs(k))
    else:
        assert (binades(base.amax, head.amax), apart) == (None, None)


@pytest.mark.parametrize("unusable", [0.0, math.inf, math.nan])
def test_no_binades_lead_from_or_to_zero_and_infinity(unusable):
    assert binades(1.0, 8.0) == 3.0
    assert binades(unusable, 8.0) is binades(8.0, unusable) is binades(unusable, unusable) is None


@pytest.mark.parametrize(("base", "head"), [((0.0,), (2.0**15,)), ((2.0**15,), (0.0,))])
def test_no_headroom_is_lost_where_a_tensor_is_zero(base, head):
    plan = Plan(modules={"fc": "float16"})
    both = [report(layers=(one_layer(tensor("activation", *values)),), plan=plan) for values in (base, head)]
    assert "headroom" not in found(*both)


def test_noise_of_a_range_shrinks_with_the_values_of_one_call():
    stats = stats_of(np.ones(100), times=8)
    assert independent_values(stats, 8) == 100
    assert independent_values(stats_of(np.zeros(100)), 8) == independent_values(stats, 0) / 800 == 1
    assert amax_noise("weight", 100) < amax_noise("weight", 10) < amax_noise("weight_grad", 10)


def test_spread_of_exponents_with_equal_mean_is_found():
    one, two = (tensor("weight", *(2.0**e for e in exponents)) for exponents in ([0.0] * 64, [-6.0, 6.0] * 32))
    changes = found(report(layers=(one_layer(one),)), report(layers=(one_layer(two),)))
    assert changes.keys() == {"amax", "distance"}
    assert changes["distance"].message == "exponents 6.0 binades apart (mean 0 → 0)"


def test_center_is_the_mean_exponent():
    assert center(TensorStats(exponents=Exponents(-3, (1, 0, 3)))) == pytest.approx((-3 + 3 * -1) / 4)


# ---------------------------------------------------------------- one metric at a time


def report(**parts):
    return Report(environment={"device": "cuda:0"}, **parts)


def tensor(role, *values, name=""):
    return TensorRecord(role, stats_of(np.array(values, dtype=float)), name)


def one_layer(*tensors, **more):
    return Layer("fc", "Linear", 4, 1, tensors, **more)


def found(base, head):
    return {change.metric: change for change in compare(base, head).changes}


def test_values_that_become_nonfinite_are_found():
    many = np.linspace(0.5, 1, 100)
    changes = found(
        report(layers=(one_layer(tensor("activation", *many)),)),
        report(layers=(one_layer(tensor("activation", *many, np.inf)),)),
    )
    assert changes["nonfinite"].regression
    assert changes["nonfinite"].message == "0.99% of the values are inf or nan, none in base"


@pytest.mark.parametrize(("values", "flagged"), [(100, True), (2, False)])
def test_a_gradient_that_vanishes_is_found_unless_it_may_be_chance(values, flagged):
    base = report(layers=(one_layer(tensor("weight_grad", *np.ones(values))),))
    head = report(layers=(one_layer(tensor("weight_grad", *np.zeros(values))),))
    assert ("vanished" in found(base, head)) == flagged


def test_a_frozen_layer_is_found_but_a_role_that_was_not_traced_is_not():
    other = Layer("other", "Linear", 4, 1, (tensor("weight_grad", 1.0),))
    both = (one_layer(tensor("weight_grad", 1.0)), other)
    assert found(report(layers=both), report(layers=(one_layer(), other)))["vanished"].fqn == "fc"
    untraced = compare(report(layers=both), report(layers=(one_layer(), replace(other, tensors=()))))
    assert untraced.changes == ()
    assert any("weight_grad" in reason for reason in untraced.not_comparable)


@pytest.mark.parametrize(
    ("amax", "name", "lost"),
    [
        (2.0**15, "float16", 7.0),  # 65504 is 2^16: one binade left of the last eight
        (2.0**8, "float16", 0.0),
        (2.0**20, "bfloat16", 0.0),
        (2.0**20, "float16", 12.0),
    ],
)
def test_headroom_counts_its_last_eight_binades(amax, name, lost):
    plan = Plan(modules={"fc": name})
    many = np.full(1000, 1.0)
    base = report(layers=(one_layer(tensor("activation", *many)),), plan=plan)
    head = report(layers=(one_layer(tensor("activation", *many[1:], amax)),), plan=plan)
    changes = found(base, head)
    assert ("headroom" in changes) == (lost > 0)
    if lost:
        assert changes["headroom"].value == pytest.approx(lost, abs=0.01)


@pytest.mark.parametrize(
    ("base", "head", "value"),
    [("pass", "inconclusive", 1), ("pass", "fail", 2), ("screened", "fail", 2), ("inconclusive", "fail", 1)],
)
def test_a_worse_verdict_is_a_regression(base, head, value):
    change = found(report(verification=Verification(base)), report(verification=Verification(head)))["verdict"]
    assert (change.value, change.regression) == (value, True)


@pytest.mark.parametrize(("base", "head"), [("fail", "pass"), ("pass", "not_run"), ("not_run", "fail")])
def test_a_better_or_missing_verdict_is_none(base, head):
    assert "verdict" not in found(report(verification=Verification(base)), report(verification=Verification(head)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("blocks", "encoder.stack", "blocks became encoder.stack"),
        ("blocks", "model.blocks", "blocks became model.blocks"),
        ("net.blocks", "net.layers", "blocks became layers"),
        ("net.blocks.3", "net.blocks.4", "blocks.3 became blocks.4"),
    ],
)
def test_layers_of_a_renamed_module_share_a_row(old, new, words):
    gpt_layer = profile(gpt(), 0).layers[2]
    sizes = {"fc": 64, "attention.qkv": 96, "mlp.0": 128}

    def at(place):
        return report(layers=tuple(replace(gpt_layer, fqn=f"{place}.{n}", parameters=p) for n, p in sizes.items()))

    (row,) = rows(compare(at(old), at(new)))
    assert row.what == f"{words}: a plan or checkpoint that names it no longer fits"
    assert sorted(row.places) == sorted(f"{new}.{name}" for name in sizes)


def test_a_finding_that_followed_its_renamed_layer_is_not_new():
    def at(fqn):
        error = Finding("PA101", "error", "overflows", "bf16", fqn, fingerprint=f"PA101-{fqn}")
        layer = replace(profile(gpt(), 0).layers[2], fqn=fqn)
        return report(layers=(layer,), findings=(error,))

    assert found(at("a.fc"), at("b.fc")).keys() == {"layers_renamed"}
    assert found(replace(at("a.fc"), findings=()), at("a.fc"))["new_errors"].regression


@pytest.mark.parametrize(
    ("base", "head", "metric"),
    [
        ("bfloat16", "float32", "formats"),
        ("float8_e4m3", "float16", "formats"),
        ("bfloat16", "float16", "formats_changed"),
        ("float32", "bfloat16", "formats_changed"),
    ],
)
def test_wider_format_is_a_regression_and_others_only_a_change(base, head, metric):
    def planned(name):
        return report(layers=(one_layer(),), plan=Plan(modules={"fc": name}))

    change = found(planned(base), planned(head))[metric]
    assert (change.fqn, change.regression) == ("fc", metric == "formats")


def test_a_new_op_exception_is_found():
    without = Plan(modules={"fc": "bfloat16"})
    with_exception = replace(without, ops=(OpFormat("fc", "softmax", "float32"),), because={"fc:softmax": "overflows"})
    change = found(report(plan=without), report(plan=with_exception))["op_exceptions"]
    assert (change.fqn, change.op) == ("fc", "softmax")
    assert "overflows" in change.message
    assert not found(report(plan=with_exception), report(plan=without))


@pytest.mark.parametrize(
    ("window", "value"), [((3, 20), None), ((5, 17), None), ((3, 12), 8), ((10, 20), 7), (None, float("inf"))]
)
def test_a_loss_scale_window_that_moved_or_closed_is_found(window, value):
    def scaled(window):
        return report(plan=Plan(modules={"fc": "float16"}, loss_scale=LossScale("dynamic", window=window)))

    change = found(scaled((3, 20)), scaled(window)).get("loss_scale")
    assert (change and change.value) == value


@pytest.mark.parametrize(
    ("base", "head", "value"),
    [
        (LossScale(), LossScale("dynamic", 2.0**12, 2000, (3, 12)), float("inf")),
        (LossScale(), LossScale("dynamic"), float("inf")),
        (LossScale("static", 2.0**14), LossScale("static", 2.0**4), 10),
        (LossScale("static", 2.0**14), LossScale("static", 2.0**12), None),
        (LossScale("static", 2.0**1000), LossScale("static", 2.0**-1000), 2000),
        (LossScale("dynamic", 2.0**12, 2000, (3, 12)), LossScale(), None),
    ],
)
def test_a_loss_scale_that_becomes_needed_or_moves_without_a_window(base, head, value):
    before, after = (report(plan=Plan(modules={"fc": "float16"}, loss_scale=scale)) for scale in (base, head))
    change = found(before, after).get("loss_scale")
    assert (change and change.value) == value


def test_plans_for_different_targets_are_not_compared():
    comparison = compare(
        report(layers=(one_layer(),), plan=Plan(modules={"fc": "float8_e4m3"}, target="h100")),
        report(layers=(one_layer(),), plan=Plan(modules={"fc": "bfloat16"}, target="a100")),
    )
    assert comparison.clean
    assert any("h100 and a100" in reason for reason in comparison.not_comparable)


def test_a_target_is_the_same_however_it_is_written():
    comparison = compare(
        report(layers=(one_layer(),), plan=Plan(modules={"fc": "bfloat16"}, target="H100")),
        report(layers=(one_layer(),), plan=Plan(modules={"fc": "float32"}, target="h100")),
    )
    assert not comparison.clean
    assert not any("targets" in reason for reason in comparison.not_comparable)


@pytest.mark.parametrize(
    ("base", "head", "told"),
    [
        ("not_run", "fail", ["verdict: not run in base and fail in head"]),
        ("pass", "not_run", ["verdict: pass in base and not run in head"]),
        ("not_run", "not_run", ["verdict: not run in base and not run in head"]),
        ("pass", "pass", []),
    ],
)
def test_incomparable_verdicts_are_reported(base, head, told):
    comparison = compare(report(verification=Verification(base)), report(verification=Verification(head)))
    assert [line for line in comparison.not_comparable if line.startswith("verdict")] == told


@pytest.mark.parametrize(("verdict", "told"), [("pass", 1), ("not_run", 0)])
def test_other_execution_is_reported_as_a_circumstance(verdict, told):
    emulated = report(verification=Verification(verdict, execution="emulated"))
    native = report(verification=Verification("pass", execution="native"))
    assert compare(native, native).measured_otherwise == ()
    lines = compare(native, emulated).measured_otherwise
    assert lines == ("verification: native in base, emulated in head",)[:told]


def test_other_circumstances_are_reported():
    base = Report(job={"script": "/a/train.py", "argv": []}, environment={"torch": "2.13.0"})
    moved = replace(base, job={**base.job, "script": "b/train.py"})
    assert compare(base, moved).measured_otherwise == ()
    assert compare(base, Report()).measured_otherwise == ()
    other = Report(job={"script": "eval.py", "argv": ["--lr", "0.1 "]}, environment={"torch": "2.14.1"})
    comparison = compare(base, other)
    assert comparison.measured_otherwise == (
        "script: train.py in base, eval.py in head",
        "arguments: none in base, --lr '0.1 ' in head",
        "torch: 2.13.0 in base, 2.14.1 in head",
    )
    for text in (render_terminal(comparison, ("a", "b")), render_markdown(comparison, ("a", "b"))):
        assert "Measured otherwise" in text


@pytest.mark.parametrize(
    ("calls", "steps", "planned", "told"),
    [
        (1, 11, True, []),
        (5, 11, True, []),
        (6, 11, True, ["layers", "ops"]),
        (5, 5, True, ["layers", "ops"]),  # in every step
        (1, 11, False, ["layers"]),  # the model has it no more
        (1, None, True, ["layers", "ops"]),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_seldom_used_branch_is_no_change(calls, steps, planned, told, swapped):
    always = Layer("fc", "Linear", 4, 11, ()), Op("fc", "linear", 11, "lower", None, ())
    branch = Layer("rare", "Linear", 9, calls, ()), Op("fc", "tanh", calls, "other", None, ())
    job = {"audited_steps": steps} if steps else {}
    with_it, without = (Plan(modules=dict.fromkeys(fqns, "bfloat16")) for fqns in (("fc", "rare"), ("fc",)))
    one = report(job=job, layers=(always[0], branch[0]), ops=(always[1], branch[1]), plan=with_it)
    other = report(job=job, layers=always[:1], ops=always[1:], plan=with_it if planned else without)
    names = {"layers": "layers_added" if swapped else "layers_removed", "ops": "ops"}
    assert found(*((other, one) if swapped else (one, other))).keys() == {names[each] for each in told}


@pytest.mark.parametrize(
    ("fqn", "inside", "metrics"),
    [
        ("", "head", ["ops", "ops"]),
        ("blocks", "blocks.0", ["ops", "ops"]),
        ("blocks", "head", ["layers_added", "layers_removed"]),
    ],
)
def test_a_module_that_computes_between_its_modules_is_not_new(fqn, inside, metrics):
    """A container has a record only where it computes itself."""
    plain = Report(layers=(Layer(inside, "Linear", 8, 1, ()),))
    computing = replace(plain, layers=(Layer(fqn, "GPT", 0, 1, ()), *plain.layers))
    changes = [*compare(plain, computing).changes, *compare(computing, plain).changes]
    assert [change.metric for change in changes] == metrics


# ---------------------------------------------------------------- autocast as written


def test_removed_autocast_is_reported_by_layer():
    changes = compare(with_autocast("bfloat16"), with_autocast(None)).changes
    assert [(c.metric, c.fqn, c.base, c.head) for c in changes] == [("dtypes", "a", "bfloat16", "float32")]


def test_changes_to_two_dtypes_are_separate():
    def report(activation, weight):
        none = TensorStats()
        records = (
            TensorRecord("activation", none, dtype=activation),
            TensorRecord("weight", none, name="weight", dtype=weight),
        )
        return Report(layers=(Layer("a", "Linear", 1, 1, records),))

    changes = compare(report("float32", "bfloat16"), report("bfloat16", "float32")).changes
    assert {change.message for change in changes if change.metric == "dtypes"} == {
        "float32 became bfloat16 (activation)",
        "bfloat16 became float32 (weight)",
    }


def test_autocast_around_what_runs_in_float32_anyway_is_no_change():
    assert compare(with_autocast("bfloat16", "fp32"), with_autocast(None, "fp32")).changes == ()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (("linear",), ("linear", "tanh"), "calls tanh as well"),
        (("linear", "tanh"), ("linear",), "calls tanh no more"),
        (("tanh",), ("relu",), "calls relu in place of tanh"),
    ],
)
def test_changed_operations_are_described(before, after, words):
    def calling(names):
        ops = tuple(Op("a", name, 1, "other", None, ()) for name in names)
        return Report(layers=(Layer("a", "Linear", 1, 1, ()),), ops=ops)

    assert [change.message for change in compare(calling(before), calling(after)).changes] == [words]


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        ((1e-5, 1e-5), (1e-12, 1e-12), math.log2(1e7)),
        ((0.25, 0.25), (0.5, 0.5), 1),
        ((1e9, 1e9), (math.inf, math.inf), math.inf),
        ((1e-5, 1e-5), (1e-5, 1e-5), None),  # as before
        ((1e-5, 1e-5), (1e-12, 0.5), None),  # calls differ in it, and so may seeds
        ((math.nan, math.nan), (0.5, 0.5), None),
        (None, (0.5, 0.5), None),
    ],
)
def test_an_operation_s_other_constant_is_found_by_how_far_it_moved(before, after, moved):
    base, head = (
        Report(
            layers=(Layer("norm", "Norm", 1, 9, ()),),
            ops=(Op("norm", "add", 9, "other", None, (), constants=constants),),
        )
        for constants in (before, after)
    )
    found = {(c.metric, c.fqn, c.op): c.value for c in compare(base, head).changes}
    assert found == ({("constants", "norm", "add"): pytest.approx(moved)} if moved else {})


def test_a_smallest_magnitude_that_moved_hides_no_operation_that_overflows():
    """It is listed, and fails nothing: the layer's output is no reason to pass over what is inside."""
    base = profile(gpt(), 0)
    fqn = "blocks.0.act"

    def changed(each, **fields):
        record = each.tensor("activation")
        new = replace(record, stats=replace(record.stats, **fields))
        return replace(each, tensors=tuple(new if tensor is record else tensor for tensor in each.tensors))

    layers = [changed(each, amin_nonzero=2.0**-90) if each.fqn == fqn else each for each in base.layers]
    ops = [changed(each, nonfinite=5) if each.fqn == fqn else each for each in base.ops]
    comparison = compare(base, replace(base, layers=tuple(layers), ops=tuple(ops)))
    assert [(each.metric, each.regression) for each in comparison.changes] == [("nonfinite", True), ("amin", False)]
