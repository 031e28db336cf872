"""What findings say of what the rules forbade, and of gradients below float16's range."""

import math
from dataclasses import replace

import pytest

from precaudit.model import (
    Exponents,
    FormatFit,
    Layer,
    Location,
    Op,
    OpFormat,
    Plan,
    Repair,
    TensorRecord,
    TensorStats,
    Verification,
)
from precaudit.ownprecision.records import Cast, NonFiniteLoss, Overflow, OwnPrecision, RunawayScale, Scaler
from precaudit.planning.budget import GradientError
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import Audit
from precaudit.profiling.culprits import roughest
from precaudit.profiling.findings.all import all_findings
from precaudit.profiling.findings.entries import causes_in
from precaudit.reporting.facts import settled
from precaudit.running.job import Job, RunResult
from precaudit.tracing.records import Trace
from precaudit.verification.verdict import OUTSIDE

SCALER = Scaler(2.0**16, 2000, True)


def told(plan, own=(), bans=(), trace=None, repairs=(), verdict="pass"):
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9), own_precision=OwnPrecision(**dict(own)))
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, trace or Trace(), bans)
    return all_findings(audit, plan, Verification(verdict, "emulated", repairs=tuple(repairs)))


def ban(rule, op, value, severity="error"):
    return Ban(rule, "block", op, "float16", severity, "why", "fix", "other", value=value)


def test_a_repair_is_reported_with_its_line():
    place = Location("train.py", 12)
    repairs = [Repair("block", "float16", "float32", "overflowed", "mul", 1, place)]
    (found,) = told(Plan("float16", {}), repairs=repairs)
    assert (found.rule, found.location) == ("PA601", place)
    assert found.message == "block: mul needed float32: overflowed"
    (tried,) = told(Plan("float16", {}), repairs=repairs, verdict="inconclusive")
    assert tried.message == "block: mul was moved to float32: overflowed"


def test_an_overflow_is_reported_once():
    bans = (ban("PA101", "mul", 1e6), ban("PA106", "mul", math.inf), ban("PA106", "div", math.inf))
    found = told(Plan("float16", {"block": "float16"}), bans=bans)
    assert [(each.rule, each.op) for each in found] == [("PA101", "mul"), ("PA106", "div")]
    close = (ban("PA101", "mul", 3e4, "note"), ban("PA106", "mul", math.inf))
    assert len(told(Plan("float16", {"block": "float16"}), bans=close)) == 2


def test_gradients_that_no_loss_scale_suits_are_reported_with_their_operation():
    """Not the ReLU that stops them, nor an operation in float32."""
    sizes = [("relu", True, 2.0**30), ("neg", True, 2.0**26), ("exp", False, 2.0**40), ("mul", True, 1.0)]
    ops = []
    for line, (op, half, size) in enumerate(sizes, 20):
        gradient = TensorRecord("activation_grad", TensorStats(1, size))
        places = {"gradient": Location("nerf.py", line)}
        ops.append(Op("render", op, 1, "other", Location("nerf.py", 1), (gradient,), half=half, places=places))
    because = {"render": "its largest gradients are 2^26, its smallest need 2^-9: no single scale serves both"}
    plan = Plan("float16", {"render": "float32"}, because=because)
    (found,) = told(plan, trace=Trace(ops=tuple(ops)))
    assert (found.rule, found.op, found.location) == ("PA203", "neg", Location("nerf.py", 21))
    assert settled(plan, found)


@pytest.mark.parametrize(("reason", "remedy"), [(f"it stopped in Sum, {OUTSIDE}: no", "custom_bwd"), ("no", "stay in")])
def test_a_failed_plan_is_reported_with_a_remedy(reason, remedy):
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), ())
    (found,) = all_findings(audit, Plan("bfloat16", {}), Verification("fail", "emulated", reason=reason))
    assert found.rule == "PA602"
    assert remedy in found.suggestion


def test_no_plan_is_accused_where_float32_is_not_finite_either():
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, math.nan))
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), ())
    found = all_findings(audit, Plan("bfloat16", {}), Verification("fail", "emulated", reason="the loss is nan"))
    assert [each.rule for each in found] == ["PA603"]


def test_a_script_is_not_said_to_train_unlike_a_float32_that_is_not_finite():
    """Nor is an operation whose result is nan in float32 too."""
    reference = RunResult("reference", 0, "stopped", 3, losses=(1.0, math.nan, math.nan))
    own = OwnPrecision(low=[NonFiniteLoss(Location("train.py", 5), "log", 1)])
    for losses in ((1.0,), (1.0, 2.0, 3.0), (1.0, math.nan, math.nan)):
        written = RunResult("as-written", 0, "ended", len(losses), losses=losses, own_precision=own)
        audit = Audit(Job("script", "train.py", (), ".", 3), reference, Trace(), as_written=written)
        found = all_findings(audit, Plan("float16", {}), Verification("inconclusive", "emulated"))
        assert [each.rule for each in found] == ["PA603"]


@pytest.mark.parametrize(
    ("op", "casts", "by_plan"),
    [
        ("to", [Cast(Location("train.py", 14), "float16")], False),
        ("half", [Cast(Location("x.py", 1), "float16", Location("train.py", 14))], False),
        ("to", [Cast(Location("train.py", 15), "float16")], True),
        ("sin", [Cast(Location("train.py", 14), "float16")], True),
        ("to", [], True),
    ],
)
def test_no_plan_settles_the_scripts_own_casts(op, casts, by_plan):
    """It is rounded before the module runs, in whatever format that is."""
    aliased = replace(ban("PA105", op, 3568.0), location=Location("train.py", 14))
    run = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    written = replace(run, label="as-written", own_precision=OwnPrecision(casts=casts))
    audit = Audit(Job("script", "train.py", (), ".", 2), run, Trace(), (aliased,), as_written=written)
    plan = Plan("bfloat16", {"block": "float32"})
    (found,) = (each for each in all_findings(audit, plan, Verification("pass")) if each.rule == "PA105")
    assert settled(plan, found) is by_plan


@pytest.mark.parametrize(
    ("banned", "casts", "kept", "by_plan"),
    [
        (("mul", 8), [], "float32", True),
        (("mul", 8), [], "float16", False),
        (("mul", 9), [], "float32", False),
        (("div", 8), [], "float32", False),
        (("mul", 8), [Cast(Location("train.py", 8), "float16")], "float32", False),
    ],
)
def test_a_plan_that_obeys_a_ban_settles_the_overflow_that_the_script_has_there(banned, casts, kept, by_plan):
    """In the action's list it stood beside the sentence that nothing else is to be done."""
    op, line = banned
    bans = (replace(ban("PA101", op, 1e6), location=Location("train.py", line)),)
    made = Overflow(Location("train.py", 8), "float16", "mul", amax=590.0, step=0)
    run = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    written = replace(run, label="as-written", own_precision=OwnPrecision(casts=casts, low=(made,)))
    audit = Audit(Job("script", "train.py", (), ".", 2), run, Trace(), bans, as_written=written)
    plan = Plan("float16", {"block": "float16", "head": "float16"}, (OpFormat("block", op, kept),))
    (found,) = (each for each in all_findings(audit, plan, Verification("pass")) if each.rule == "PA307")
    assert settled(plan, found) is by_plan


@pytest.mark.parametrize(
    ("plan", "own", "fix"),
    [
        (Plan("float16", {"a": "float16"}), {}, "use plan.grad_scaler()"),
        (Plan("float16", {"a": "float32"}), {}, None),
        (Plan("bfloat16", {"a": "bfloat16"}), {}, None),
        (Plan("bfloat16", {"a": "bfloat16"}), {"autocast": "float16"}, "use torch.amp.GradScaler, or bfloat16"),
        (
            Plan("bfloat16", {"a": "bfloat16"}),
            {"autocast": "float16", "scaled_by_hand": 128.0},
            "begin with a larger scale, or use bfloat16",
        ),
        (Plan("bfloat16", {"a": "bfloat16"}), {"autocast": "float16", "grad_scaler": SCALER}, None),
        (Plan("bfloat16", {"a": "bfloat16"}), {"autocast": "bfloat16"}, None),
    ],
)
def test_vanishing_gradients_are_reported_where_they_are_float16(plan, own, fix):
    gradient = TensorRecord("weight_grad", TensorStats(8), formats={"float16": FormatFit(0.0, 0.9, 0.5)})
    found = told(plan, own, trace=Trace(layers=(Layer("a", "Linear", 8, 1, (gradient,), trained=True),)))
    assert [each.suggestion for each in found] == ([fix] if fix else [])
    assert all(each.rule == "PA202" for each in found)


def test_gradients_of_the_outermost_module_have_a_name():
    gradient = TensorRecord("activation_grad", TensorStats(8), formats={"float16": FormatFit(0.0, 0.9, 0.5)})
    layers = (Layer("", "Net", 8, 1, (gradient,), trained=True),)
    (found,) = told(Plan("float16", {"": "float16"}), trace=Trace(layers=layers))
    assert found.message.startswith("the model itself: 50% of its gradient energy")


def test_a_missing_loss_scale_is_located_at_the_scripts_autocast():
    gradient = TensorRecord("weight_grad", TensorStats(8), formats={"float16": FormatFit(0.0, 0.9, 0.5)})
    trace = Trace(layers=(Layer("a", "Linear", 8, 1, (gradient,), trained=True),))
    own = {"autocast": "float16", "autocast_at": Location("train.py", 7)}
    (found,) = told(Plan("bfloat16", {"a": "bfloat16"}), own, trace=trace)
    assert (found.rule, found.location) == ("PA202", Location("train.py", 7))
    (needed,) = told(Plan("float16", {"a": "float16"}), {"autocast_at": own["autocast_at"]}, trace=trace)
    assert needed.location is None


def test_modules_in_the_scripts_own_bfloat16_need_no_loss_scale():
    gradient = TensorRecord("weight_grad", TensorStats(8), formats={"float16": FormatFit(0.0, 0.9, 0.5)})
    layers = tuple(Layer(fqn, "Linear", 8, 1, (gradient,), trained=True) for fqn in "ab")
    regions = {"a": "float16", "b": "bfloat16"}
    ops = tuple(Op(fqn, "addmm", 1, "lower", None, (), autocast=dtype) for fqn, dtype in regions.items())
    (found,) = told(Plan("bfloat16"), {"autocast": "float16"}, trace=Trace(layers=layers, ops=ops))
    assert found.fqn == "a"


@pytest.mark.parametrize(
    ("factor", "scaler", "told"),
    [
        (1.0, Scaler(2.0, 2000, True), []),
        (1.5, Scaler(2.0, 2000, True), ["let GradScaler begin with a larger init_scale, or use bfloat16"]),
        (1.5, SCALER, []),
        (
            1.5,
            Scaler(2.0**16, 2000),
            ["call scaler.scale(loss).backward(), scaler.step(optimizer) and scaler.update(), or use bfloat16"],
        ),
    ],
)
def test_a_low_or_unused_loss_scale_is_reported_where_the_script_deviates(factor, scaler, told):
    stats = TensorStats(8, 2.0**-27, 2.0**-27, 8 * 4.0**-27, exponents=Exponents(-27, (8,)))
    gradient = TensorRecord("weight_grad", stats, formats={"float16": FormatFit(0.0, 1.0, 1.0)})
    trace = Trace(layers=(Layer("a", "Linear", 8, 1, (gradient,), trained=True),))
    own = OwnPrecision(autocast="float16", grad_scaler=scaler)
    reference, as_written = (
        RunResult(label, 0, "stopped", 80, losses=(times,) * 80, own_precision=own)
        for label, times in (("reference", 1.0), ("as-written", factor))
    )
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, trace, as_written=as_written)
    found = all_findings(audit, Plan("bfloat16", {"a": "bfloat16"}), Verification("pass", "emulated"))
    assert [each.suggestion for each in found if each.rule == "PA202"] == told


@pytest.mark.parametrize(("factor", "severity"), [(1.0, "warning"), (1.5, "error")])
def test_a_missing_loss_scale_is_an_error_where_the_script_deviates(factor, severity):
    losses = tuple(2.0 - 0.01 * step for step in range(80))
    gradient = TensorRecord("weight_grad", TensorStats(8), formats={"float16": FormatFit(0.0, 0.9, 0.5)})
    trace = Trace(layers=(Layer("a", "Linear", 8, 1, (gradient,), trained=True),))
    own = OwnPrecision(autocast="float16")
    reference, as_written = (
        RunResult(label, 0, "stopped", 80, losses=tuple(times * loss for loss in losses), own_precision=own)
        for label, times in (("reference", 1.0), ("as-written", factor))
    )
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, trace, as_written=as_written)
    found = all_findings(audit, Plan("bfloat16", {"a": "bfloat16"}), Verification("pass", "emulated"))
    assert {each.severity for each in found if each.rule == "PA202"} == {severity}
    assert any(each.rule == "PA501" for each in found) is (severity == "error")


@pytest.mark.parametrize(
    ("probed", "default", "own", "severity"),
    [
        ("float16", "bfloat16", None, "note"),
        ("float16", "bfloat16", "float16", "warning"),
        ("bfloat16", "bfloat16", None, "warning"),
        ("bfloat16", "tf32", None, "warning"),
        ("bfloat16", "float16", None, "warning"),
    ],
)
def test_a_format_over_budget_is_a_note_where_neither_plan_nor_script_use_it(probed, default, own, severity):
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9), own_precision=OwnPrecision(autocast=own))
    errors = (GradientError(f"{probed}@init", 0.5, 1.0, 0.5, 3),)
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), errors=errors)
    found = all_findings(audit, Plan(default, {"a": default}), Verification("pass", "emulated"))
    assert [(each.rule, each.severity) for each in found] == [("PA201", severity)]
    (advice,) = {each.suggestion for each in found}
    assert advice == (f"use {default} instead of {probed}, as the plan does" if default != probed else "")


@pytest.mark.parametrize(
    ("errors", "named", "line"),
    [
        ({"matmul": 0.003, "sub": 7.2}, "sub", 19),
        ({"matmul": 0.003, "sub": 0.004}, None, None),
        ({"matmul": 0.003, "add": 0.4}, None, None),
        ({"sub": math.inf}, None, None),
    ],
)
def test_a_format_over_budget_is_blamed_on_the_roughest_operation(errors, named, line):
    ops = tuple(
        Op("conv", op, 1, "other", Location("train.py", 19), (), local_error={"bfloat16": error})
        for op, error in errors.items()
    )
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    over, blamed = (GradientError("bfloat16@init", 0.5, 1.0, 0.5, 3),), {"bfloat16": ("conv",)}
    job = Job("script", "train.py", (), ".", 2)
    trace = Trace(ops=ops)
    culprit = roughest(trace, "conv", "bfloat16")
    audit = Audit(job, reference, trace, errors=over, blamed=blamed, culprit=culprit)
    (found,) = all_findings(audit, Plan("bfloat16", {"conv": "float32"}), Verification("pass", "emulated"))
    assert (found.rule, found.fqn, found.op, found.location and found.location.line) == ("PA201", "conv", named, line)
    assert found.suggestion == "keep conv out of bfloat16, as the plan does"


def test_a_format_over_budget_for_several_modules_is_settled_where_the_plan_spares_all_of_them():
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    over, blamed = (GradientError("bfloat16@init", 0.5, 1.0, 0.5, 3),), {"bfloat16": ("a", "b")}
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), errors=over, blamed=blamed)
    for sparing, spared in (({"a": "tf32", "b": "float32"}, True), ({"a": "tf32", "b": "bfloat16"}, False)):
        plan = Plan("bfloat16", {**sparing, "c": "bfloat16"})
        (found,) = all_findings(audit, plan, Verification("pass", "emulated"))
        assert settled(plan, found) is spared


def test_a_format_over_budget_names_the_measured_operation():
    place = Location("train.py", 34)
    product = Op("knn", "matmul", 1, "lower", place, (), local_error={"bfloat16": 0.002})
    ops = (product, Op("knn", "sub", 1, "other", None, ()))
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    over, blamed = (GradientError("bfloat16@init", 0.5, 1.0, 0.5, 3),), {"bfloat16": ("knn",)}
    job = Job("script", "train.py", (), ".", 2)
    audit = Audit(job, reference, Trace(ops=ops), errors=over, blamed=blamed, culprit=product)
    (found,) = all_findings(audit, Plan("bfloat16", {"knn": "float32"}), Verification("pass", "emulated"))
    assert (found.fqn, found.op, found.location) == ("knn", "matmul", place)
    assert found.message.endswith("most of the error comes from knn, from its matmul")


def test_a_format_over_budget_in_several_phases_is_reported_once():
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, 0.9))
    over = (GradientError("bfloat16@init", 0.5, 4.0, 0.5, 3), GradientError("bfloat16@late", 0.2, 1.0, 0.5, 3))
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), errors=over)
    (found,) = all_findings(audit, Plan("bfloat16", {}), Verification("pass", "emulated"))
    assert "(init: by 50% of its size, 50% of the variance between batches, 50% in every batch alike; late: by" in (
        found.message
    )
    assert found.message.endswith("; allowed: 32%, 1%, 20%)")
    assert found.evidence["probe"] == "bfloat16@late"


def test_direct_calls_of_forward_are_reported_together():
    trace = Trace(bypassed={"": Location("train.py", 9), "head": Location("train.py", 12)})
    (found,) = told(Plan("bfloat16", {"": "float32"}), trace=trace)
    assert (found.rule, found.location) == ("PA003", Location("train.py", 9))
    assert "the model, head: forward is called directly" in found.message
    assert "super().__call__" in found.suggestion
    assert not settled(Plan("bfloat16", {"": "float32"}), found)


@pytest.mark.parametrize(("begins", "said"), [(True, "begins at"), (False, "runs away")])
def test_a_scale_that_is_high_from_the_start_does_not_run_away(begins, said):
    run = RunResult("as-written", 0, "stopped", 2)
    run.own_precision.low = [RunawayScale(Location("train.py", 9), 2.0**41, 0, begins)]
    (found,) = causes_in(run, run, "error")
    assert found.rule == "PA505"
    assert said in found.message


@pytest.mark.parametrize(("low", "fix"), [([RunawayScale(None, 1e13, 20)], "cap"), ([], "repair")])
def test_a_loss_scale_that_runs_away_in_float32_too_is_the_cause(low, fix):
    """A scale kept by hand is in force in the float32 runs."""
    reference = RunResult("reference", 0, "stopped", 2, losses=(1.0, math.inf))
    written = RunResult("as-written", 0, "stopped", 2, losses=(1.0, math.inf), own_precision=OwnPrecision(low=low))
    audit = Audit(Job("script", "train.py", (), ".", 2), reference, Trace(), as_written=written)
    found = all_findings(audit, Plan("float16", {}), Verification("inconclusive", "emulated"))
    (broken,) = [each for each in found if each.rule == "PA603"]
    assert broken.suggestion.split()[0] == fix
    assert {each.suggestion for each in found if each.rule == "PA505"} <= {broken.suggestion}
