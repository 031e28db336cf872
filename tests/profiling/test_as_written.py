"""What is said of a script's own low precision, from one run of it as written beside float32."""

import math
from dataclasses import replace

import pytest
import torch
from in_process import InProcess
from torch import nn

import precaudit
from precaudit.finding import USE_THE_PLAN
from precaudit.model import Difference, Layer, Location, Plan, TensorRecord, TensorStats, Verification
from precaudit.ownprecision.records import (
    BlurredInCast,
    Cancellation,
    Cast,
    LostGradient,
    Misuse,
    NonFiniteGradient,
    NonFiniteLoss,
    NonFiniteStep,
    NonFiniteWeight,
    OpLoss,
    Overflow,
    OwnPrecision,
    RoundedConstant,
    RowSumLoss,
    Scaler,
    StaleCast,
    StateLoss,
    TrainedLow,
    VainDecay,
    VanishedInCast,
)
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import Audit, run_audit
from precaudit.profiling.findings.all import all_findings
from precaudit.profiling.findings.as_written import of_as_written
from precaudit.running.job import EndState, Job, RunResult, ScriptError
from precaudit.tracing.records import Trace

LOSSES = tuple(1.0 - step / 100 for step in range(80))
CASTS = (Cast(Location("train.py", 3), "bfloat16"),)
SCALER = Scaler(2.0**16, 2000, True)


PASSED = Verification("pass", "emulated")


def told(losses=LOSSES, status="stopped", low=(), noted=(), seen=(), verification=PASSED, **fields):
    own = OwnPrecision(**{"casts": CASTS, "low": low, **dict(noted)})
    ended = fields.pop("reference_end", EndState())
    written = RunResult("as-written", 0, status, len(losses), losses=losses, own_precision=own, **fields)
    known = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, end_state=ended)
    known = replace(known, own_precision=OwnPrecision(**dict(seen)))
    audit = Audit(Job("script", "train.py", (), ".", 80), known, Trace(), as_written=written)
    return of_as_written(audit, verification)


def test_a_deviating_script_is_an_error():
    (found,) = told(tuple(2 * loss for loss in LOSSES))
    assert (found.rule, found.severity) == ("PA501", "error")
    assert "doesn't train like float32" in found.message


def test_where_nothing_explains_a_deviation_the_casts_are_listed():
    strayed = tuple(2 * loss for loss in LOSSES)
    (found,) = told(strayed, noted={"casts": [*CASTS, *CASTS, Cast(Location("model.py", 9), "float16")]})
    assert found.message.endswith("no single operation explains it: look at what is cast at train.py:3, model.py:9")
    assert found.suggestion == f"{USE_THE_PLAN}, and keep in float32 what is cast there by hand"
    failed = told(strayed, verification=replace(PASSED, verdict="fail"))[0]
    assert "cast there" not in failed.suggestion + told(strayed, noted={"casts": []})[0].suggestion
    assert "look at" not in told(strayed, low=[absorbed("crf", 0.6)])[0].message
    assert "look at" not in told(strayed, noted={"casts": []})[0].message


@pytest.mark.parametrize(("share", "strays"), [(1.08, False), (1.2, True)])
def test_a_wide_last_margin_does_not_hide_a_deviating_script(share, strays):
    wide = replace(PASSED, margin=0.03)
    assert any(each.rule == "PA501" for each in told(tuple(share * x for x in LOSSES), verification=wide)) is strays


@pytest.mark.parametrize(
    ("verdict", "share", "strays"), [("inconclusive", 1.2, False), ("inconclusive", 1.5, True), ("fail", 1.2, True)]
)
def test_one_pair_that_decides_nothing_about_the_plan_tells_what_chance_does(verdict, share, strays):
    pair = replace(PASSED, verdict=verdict, margin=0.01, seeds=(0,), difference=Difference(-0.1))
    assert any(each.rule == "PA501" for each in told(tuple(share * x for x in LOSSES), verification=pair)) is strays


@pytest.mark.parametrize(
    ("verdict", "used"),
    [("pass", True), ("screened", True), ("not_run", True), ("fail", False), ("inconclusive", False)],
)
def test_a_failed_plan_is_not_suggested(verdict, used):
    (found,) = told(tuple(2 * loss for loss in LOSSES), verification=replace(PASSED, verdict=verdict))
    assert found.suggestion.startswith(USE_THE_PLAN) is used


@pytest.mark.parametrize(("passes", "strays"), [(320, True), (220, False)])
def test_a_scaler_that_skips_too_many_steps_is_an_error(passes, strays):
    """Two backward passes a step; a few more are those of the steps that it skipped at first."""
    for scaler in (None, SCALER):
        own = OwnPrecision(grad_scaler=scaler)
        reference = RunResult(
            "reference", 0, "stopped", len(LOSSES), losses=LOSSES, backward_calls=160, own_precision=own
        )
        written = RunResult("as-written", 0, "stopped", len(LOSSES), losses=LOSSES, backward_calls=passes)
        audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
        found = [each.message for each in of_as_written(audit, PASSED)]
        assert [message.endswith("its scaler skips 80 of 160 optimizer steps") for message in found] == (
            [True] if scaler and strays else []
        )


@pytest.mark.parametrize(
    ("asked", "low", "said"),
    [
        (60, (), "its scaler skips 40 of 60 optimizer steps"),
        (20, (), "the script itself leaves out 40 of 60 optimizer steps, before it calls scaler.step: where it judges"),
        (20, (NonFiniteLoss(None, "div", 3),), "optimizer steps, before it calls scaler.step"),
    ],
)
def test_who_skips_steps_is_told(asked, low, said):
    """A script that leaves a batch out never calls its scaler for it, and sees its gradients scaled."""
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, backward_calls=80)
    reference = replace(reference, own_precision=OwnPrecision(grad_scaler=SCALER))
    own = OwnPrecision(scaler_steps=asked, low=low)
    written = RunResult("as-written", 0, "ended", 20, losses=LOSSES[:20], backward_calls=60, own_precision=own)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    message = next(each.message for each in of_as_written(audit, PASSED) if each.rule == "PA501")
    assert said in message
    assert ("multiplied by the loss scale" in message) == (asked == 20 and not low)


@pytest.mark.parametrize(("skipped", "strays"), [(3, False), (0, True)])
def test_losses_after_a_skipped_step_may_differ_by_chance(skipped, strays):
    noisy = tuple(1.0 + math.sin(step * step) for step in range(83))
    reference = RunResult("reference", 0, "stopped", 80, losses=noisy[:80], backward_calls=80)
    written = RunResult("as-written", 0, "stopped", 80, losses=noisy[3:], backward_calls=80 + skipped)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    assert bool(of_as_written(audit, replace(PASSED, margin=0.0001))) == strays


def test_one_pair_may_differ_by_the_spread_of_the_trials():
    seeds = tuple(range(8))
    wide = Verification("inconclusive", "emulated", 0.01, seeds, difference=Difference(0.003, -0.029, 0.035))
    narrow = replace(wide, difference=Difference(0.0, -0.004, 0.004))
    fewer = tuple(0.86 * loss for loss in LOSSES)
    assert told(fewer, verification=wide) == []
    assert [each.rule for each in told(fewer, verification=narrow)] == ["PA501"]
    assert [each.rule for each in told(tuple(2 * loss for loss in LOSSES), verification=wide)] == ["PA501"]


def test_a_script_that_skips_its_steps_does_not_train():
    overflow = Overflow(Location("train.py", 9), "float16", "div", 2.0, 0)
    for taken in ((), LOSSES[:30]):
        found = told(taken, "ended", low=[overflow])
        assert [(each.rule, each.severity) for each in found] == [("PA501", "error"), ("PA307", "error")]
        assert f"it takes {len(taken)} optimizer steps" in found[0].message
    assert told(LOSSES[:60], "ended", seen={"grad_scaler": SCALER}) == told(LOSSES[:30], "stopped") == []


@pytest.mark.parametrize(
    ("writes", "advice"),
    [(False, "keep this operation in float32"), (True, "keep what this operation changes in place in float32")],
)
def test_what_overflows_in_place_is_to_be_kept_in_float32(writes, advice):
    """An operation whose result is put into a half tensor stays half, whatever it is computed in."""
    made = Overflow(Location("train.py", 9), "float16", "add", 6e4, 3, in_place=writes)
    _, cause = told((), "ended", low=[made])
    assert cause.suggestion == advice


def test_what_overflows_in_an_evaluation_at_the_end_is_of_no_step_and_no_cause():
    """Models are called once more after a run, and scripts evaluate; no step 80 is among 80 steps."""
    made = Overflow(Location("train.py", 9), "float16", "pow", 6e4, len(LOSSES))
    for status in ("stopped", "ended"):
        (found,) = told(status=status, low=[made])
        assert "own float16 after the last step, from" in found.message
        strayed, cause = told(tuple(2 * loss for loss in LOSSES), status, low=[made])
        assert (strayed.severity, cause.severity) == ("error", "warning")
    cause, early = told(LOSSES[:60], "ended", low=[replace(made, step=60)])
    assert (cause.rule, early.rule) == ("PA307", "PA501")
    assert "at step 60" in cause.message


def test_an_overflow_at_the_end_hides_no_operation_that_lost_the_loss_before():
    lost = (*LOSSES[:40], *[math.nan] * 40)
    late = Overflow(Location("train.py", 9), "float16", "pow", 6e4, len(LOSSES))
    for maker in (NonFiniteLoss(Location("train.py", 5), "log", 40), NonFiniteGradient(None, "sqrt", True, 39)):
        for overflow in (late, replace(late, step=30)):
            ops = [each.op for each in told(lost, low=[maker, overflow]) if each.op]
            assert ops[0] == (maker.op if overflow is late else "pow")


def test_a_cast_of_what_is_too_large_is_called_a_cast():
    """A cast can't be kept in float32: what is cast can, or be smaller."""
    _, cause = told((), "ended", low=[Overflow(Location("train.py", 9), "float16", "to", 1e9, 3)])
    assert cause.message.startswith("values up to 1e+09 are cast to float16 here at step 3")
    assert "torch.finfo(x.dtype).min" in cause.suggestion


def test_an_early_end_or_skipped_batches_as_written_are_reported():
    """It looks whether its loss is finite, and nothing that isn't is ever seen of it."""
    (early,) = told(LOSSES[:60], "ended")
    assert (early.rule, early.severity) == ("PA501", "warning")
    assert "ends by itself at step 60, in float32 not before 80" in early.message
    assert told(LOSSES[:75], "ended") == []
    for scaler, calls, strays in (
        (None, (1,) * 70 + (3,) * 10, True),
        (None, (1,) * 77 + (3,) * 3, False),
        (None, (20, *(1,) * 79), False),
        (None, (20, *(1,) * 69, *(3,) * 10), True),
        (SCALER, (20, *(1,) * 79), False),
        (SCALER, (60, *(1,) * 79), True),
    ):
        own = OwnPrecision(grad_scaler=scaler)
        reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, calls=(1,) * 80, own_precision=own)
        written = RunResult("as-written", 0, "stopped", 80, losses=LOSSES, calls=calls)
        found = of_as_written(Audit(Job("script", "t.py", (), ".", 80), reference, Trace(), as_written=written), PASSED)
        assert ["batches in 80 steps" in each.message for each in found] == [True] * strays


@pytest.mark.parametrize(("calls", "strays"), [((18 * 8, *(8,) * 79), False), ((9,) * 80, True), ((30,) * 80, True)])
def test_a_skipped_step_counts_once_whatever_its_batches(calls, strays):
    """With eight micro-batches, seventeen such steps are no 136."""
    own = OwnPrecision(grad_scaler=SCALER)
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, calls=(8,) * 80, own_precision=own)
    written = RunResult("as-written", 0, "stopped", 80, losses=LOSSES, calls=calls)
    found = of_as_written(Audit(Job("script", "t.py", (), ".", 80), reference, Trace(), as_written=written), PASSED)
    assert [f"{sum(calls) - 8 * 80} batches in 80 steps" in each.message for each in found] == [True] * strays


def test_a_scaler_by_hand_may_skip_steps_until_it_finds_its_scale():
    """The steps that a script of so many batches then lacks are those, and no break."""
    reference = RunResult("reference", 0, "ended", 80, losses=LOSSES, calls=(1,) * 80)
    written = RunResult("as-written", 0, "ended", 61, losses=LOSSES[:61], calls=(20, *(1,) * 60))
    assert (
        of_as_written(Audit(Job("script", "t.py", (), ".", 80), reference, Trace(), as_written=written), PASSED) == []
    )


def test_a_script_that_stops_as_written_is_a_warning():
    error = ScriptError("RuntimeError", "no float16 kernel", "", Location("train.py", 9))
    (found,) = told(LOSSES[:2], "failed", error=error)
    assert (found.rule, found.severity) == ("PA501", "warning")
    assert "stops at step 2 on this machine: no float16 kernel" in found.message


def test_a_script_that_stops_at_its_own_nan_does_not_train():
    """torch's distributions refuse the nan that the weights are by then: it is known how the script trains."""
    error = ScriptError("ValueError", "found invalid values", "", Location("train.py", 9))
    (found,) = told((LOSSES[0], math.nan), "failed", error=error)
    assert (found.rule, found.severity, found.location) == ("PA501", "error", Location("train.py", 9))
    assert "doesn't train like float32: the loss is nan at step 1" in found.message
    assert found.message.endswith("and the script stops at step 2: found invalid values")


def test_a_script_whose_run_as_written_was_interrupted_has_not_stopped_by_itself():
    error = ScriptError("Killed", "the script's process was killed by SIGTERM after step 2", "")
    assert told(LOSSES[:2], "interrupted", error=error) == []


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("step() has already been called since the last update().", "call scaler.update() once"),
        ("No inf checks were recorded prior to update.", "call scaler.update() once a step, after scaler.step"),
        ("No inf checks were recorded for this optimizer.", "step an optimizer only after"),
    ],
)
def test_an_exception_of_torchs_scaler_is_an_error(said, fix):
    place = Location("train.py", 9)
    error = ScriptError("RuntimeError", said, "", place, raised_by="torch.amp.grad_scaler")
    (found,) = told(LOSSES[:2], "failed", error=error)
    assert (found.rule, found.severity, found.location) == ("PA501", "error", place)
    assert "stops at step 2, on any machine" in found.message
    assert found.suggestion.startswith(fix)


BF16 = torch.bfloat16
REFUSED = {
    "constant": (lambda: torch.ones(2).half().masked_fill(torch.tensor([True, False]), -1e9), "torch.finfo(x.dtype)"),
    "product": (lambda: torch.ones(2, 2) @ torch.ones(2, 2, dtype=BF16), "to one dtype"),
    "linear": (lambda: nn.Linear(2, 2)(torch.ones(2, 2, dtype=BF16)), "to one dtype"),
    "dot": (lambda: torch.dot(torch.ones(2), torch.ones(2, dtype=BF16)), "to one dtype"),
    "put": (lambda: torch.ones(2).index_put_((torch.tensor([0]),), torch.ones(1, dtype=BF16)), "to one dtype"),
    "add": (lambda: torch.ones(2).index_add_(0, torch.tensor([0]), torch.ones(1, dtype=BF16)), "to one dtype"),
    "recurrent": (lambda: nn.LSTM(2, 2)(torch.ones(1, 1, 2, dtype=BF16)), "to one dtype"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_torch_refuses_on_any_device_stops_the_script_on_any_machine(refused):
    code, fix = REFUSED[refused]
    with pytest.raises((RuntimeError, ValueError)) as raised:
        code()
    error = ScriptError(raised.type.__name__, str(raised.value), "")
    (found,) = told((), "failed", error=error)
    assert (found.rule, found.severity) == ("PA501", "error")
    assert "on any machine: torch refuses it" in found.message
    assert fix in found.suggestion


def test_what_this_machine_lacks_does_not():
    error = ScriptError("NotImplementedError", '"some_kernel" not implemented for \'Half\'', "")
    (found,) = told((), "failed", error=error)
    assert (found.rule, found.severity) == ("PA501", "warning")
    assert "on this machine" in found.message


def state(fqn, buffer, lost, model=None):
    return StateLoss(Location("train.py", 5), model, fqn, buffer, "bfloat16", lost)


@pytest.mark.parametrize(("models", "name"), [(("student", "teacher"), "teacher.0"), (("teacher",), "0")])
def test_state_of_a_second_model_is_named_as_in_the_report(models, name):
    low = [state("0", "", 0.9, "teacher")]
    (found,) = told(low=low, trace=Trace(models=models))
    assert found.fqn == name
    assert found.message.startswith(f"a weight of {name} is kept in bfloat16")


def absorbed(fqn, lost, op="add", line=7, region_steps=False):
    return OpLoss(Location("train.py", line), fqn, op, "bfloat16", lost, region_steps)


def test_an_absorbing_addition_explains_a_deviation():
    strayed, low = tuple(2 * loss for loss in LOSSES), [absorbed("crf", 0.6), absorbed("", 0.9), absorbed("", 0.1)]
    written, inside, outside = told(strayed, low=low)
    assert (written.rule, inside.rule, inside.severity, inside.fqn) == ("PA501", "PA106", "error", "crf")
    assert inside.message.startswith(
        "crf: add in bfloat16, which the script chose itself, is off by 60% of the smallest number in it"
    )
    assert (outside.fqn, outside.location) == (None, Location("train.py", 7))
    assert [each.rule for each in told(strayed, low=[*low, state("norm", "", 0.9)])] == ["PA501", "PA303"]
    assert "PA106" not in [each.rule for each in told(low=low)]


def test_gradients_summed_in_half_hide_no_operation_that_loses_more():
    strayed = tuple(2 * loss for loss in LOSSES)
    rows = RowSumLoss(Location("train.py", 8), "", "bfloat16", 0.04, "index_select")
    _, sums, inside = told(strayed, low=[rows, absorbed("conv", 0.6, "index_add")])
    assert (sums.rule, sums.op) == ("PA305", "index_select")
    assert (inside.rule, inside.op, inside.fqn) == ("PA106", "index_add", "conv")


def test_products_outside_of_modules_are_named_where_nothing_explains_a_deviation():
    strayed = tuple(2 * loss for loss in LOSSES)
    low = [absorbed("", 0.002, "matmul", line) for line in (23, 19)]
    (found,) = told(strayed, low=low)
    assert (
        "matrix products outside of all modules run in bfloat16 too, the first of them matmul at train.py:19"
        in found.message
    )
    for others in ([], [absorbed("", 0.002)], [*low, absorbed("crf", 0.6)]):
        assert "outside of all modules" not in told(strayed, low=others)[0].message


def test_where_nothing_explains_a_deviation_what_runs_low_outside_of_modules_is_named():
    """Beside casts only what loses more than every operation does; without any cast (a loss of an autocast region's
    output) the operations are all that is known, the worst first."""
    strayed = tuple(2 * loss for loss in LOSSES)
    low = [absorbed("", 0.002, "log_softmax", 4), absorbed("", 0.18, "add", 9), absorbed("crf", 0.2)]
    assert told(strayed, low=low)[0].message.endswith(
        "look at what is cast at train.py:3, and at what is computed in bfloat16 outside of all modules: "
        "add at train.py:9"
    )
    assert told(strayed, low=low, noted={"casts": []})[0].message.endswith(
        "look at what is computed in bfloat16 outside of all modules: add at train.py:9, log_softmax at train.py:4"
    )


def test_nonfinite_values_explain_a_nonfinite_loss():
    made = NonFiniteLoss(Location("train.py", 8), "mul", 3)
    lost = (*LOSSES[:3], *[math.nan] * 77)
    _, cause = told(lost, low=[made])
    assert (cause.rule, cause.op, cause.location) == ("PA307", "mul", Location("train.py", 8))
    assert cause.message.startswith("mul makes non-finite values at step 3, and the loss with them")
    assert told(low=[made]) == []
    assert [each.rule for each in told(lost, low=[replace(made, step=0)])] == ["PA501"]


def test_nonfinite_values_explain_a_run_whose_scaler_skips_all_further_steps():
    """The loss belongs to a step that was never taken."""
    made = NonFiniteLoss(Location("grpo.py", 39), "truediv", 3)
    found = told(LOSSES[:3], "ended", low=[made], seen={"grad_scaler": SCALER})
    assert [(each.rule, each.op) for each in found] == [("PA501", None), ("PA307", "truediv")]
    assert "PA307" not in {each.rule for each in told(LOSSES[:5], "ended", low=[made])}  # it went on


def test_a_backward_that_makes_nan_explains_steps_that_are_all_skipped():
    made = NonFiniteGradient(Location("train.py", 14), "sqrt", nan=True, step=0)
    skipped, cause = told((), "ended", low=[made], seen={"grad_scaler": SCALER})
    assert (skipped.rule, cause.rule, cause.op, cause.location) == ("PA501", "PA307", "sqrt", Location("train.py", 14))
    assert cause.message.startswith("the backward of sqrt makes nan at step 0, where the loss")
    assert told(low=[made]) == []  # the scaler lowered its scale, and the rest went well
    unscaled = [made, NonFiniteStep(Location("train.py", 20), "body.0", step=0, parameters=4)]
    nan = (LOSSES[0], *[math.nan] * (len(LOSSES) - 1))
    assert [each.rule for each in told(nan, low=unscaled)] == ["PA501", "PA307"]  # no scaler would help
    stops = told(nan[:9], "failed", low=unscaled)
    assert [each.rule for each in stops] == ["PA501", "PA307"]
    assert ("PA504", Location("train.py", 20)) in {(each.rule, each.location) for each in told(nan, low=unscaled[1:])}


def test_overflowing_gradients_explain_a_deviation():
    lost = LostGradient(Location("train.py", 8), "body.0", "float16", step=0, scale=2.0**20)
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=[lost, absorbed("crf", 0.6)])
    assert (cause.rule, cause.fqn, cause.location) == ("PA307", "body.0", Location("train.py", 8))
    assert "of a loss multiplied by 1.05e+06" in cause.message
    assert told(low=[lost]) == []
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=[replace(lost, dtype="float32")])
    assert "in the script's own low precision" in cause.message


def test_clipping_of_gradients_scaled_by_hand_is_an_error_without_a_deviation():
    misuse = Misuse(Location("train.py", 9), "clip_grad_norm_")
    (found,) = told(seen={"misuses": {"clips_by_hand": misuse}})
    assert (found.rule, found.severity, found.location) == ("PA502", "error", Location("train.py", 9))
    assert "divide the gradients" in found.suggestion


def test_weights_that_the_script_makes_nonfinite_explain_a_deviation():
    _, cause = told((), "ended", low=[NonFiniteWeight(Location("train.py", 8), "body.0", "add", 3)])
    assert (cause.rule, cause.fqn, cause.op, cause.location) == ("PA504", "body.0", "add", Location("train.py", 8))


def test_casts_that_flush_small_values_explain_a_deviation():
    low = [VanishedInCast(Location("train.py", line), "float16", lost) for line, lost in ((20, 0.4), (21, 0.01))]
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=low)
    assert (cause.rule, cause.location) == ("PA309", Location("train.py", 20))
    assert cause.message.startswith("40% of the values that are cast to float16 here")
    assert told(low=low) == []


def test_casts_that_are_too_coarse_explain_a_deviation():
    low = [BlurredInCast(Location("train.py", line), "bfloat16", lost) for line, lost in ((20, 0.9), (21, 0.05))]
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=low)
    assert (cause.rule, cause.location) == ("PA309", Location("train.py", 20))
    assert cause.message.startswith("bfloat16 is too coarse for the values that are cast to it here")
    assert told(low=low) == []


def test_differences_of_rounded_values_explain_a_deviation_where_nothing_else_does():
    places = ((20, 0.4), (21, 0.05))
    low = [Cancellation(Location("train.py", line), "loss", "sub", "bfloat16", lost) for line, lost in places]
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=low)
    assert (cause.rule, cause.fqn, cause.op, cause.location) == ("PA106", "loss", "sub", Location("train.py", 20))
    assert "their rounding is 40% of what is left" in cause.message
    assert told(low=low) == []
    known = BlurredInCast(Location("train.py", 19), "bfloat16", 0.9)
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=[*low, known])
    assert cause.rule == "PA309"


@pytest.mark.parametrize(
    ("noted", "rule"),
    [
        ("changes_scaled", "PA502"),
        ("unscales_twice", "PA508"),
        ("other_scaler", "PA508"),
        ("made_anew", "PA510"),
    ],
)
def test_misuse_of_scaled_gradients_explains_a_deviation(noted, rule):
    seen = {"misuses": {noted: Misuse(Location("train.py", 9), "SGD")}}
    _, cause = told(tuple(2 * loss for loss in LOSSES), seen=seen)
    assert (cause.rule, cause.severity, cause.location) == (rule, "error", Location("train.py", 9))
    assert rule not in [each.rule for each in told(seen=seen)]


@pytest.mark.parametrize(("noted", "rule"), [("changes_scaled", "PA502"), ("unscales_twice", "PA508")])
@pytest.mark.parametrize(
    ("without", "scaled", "certain"), [(0.3, 1e-5, True), (0.0, 0.9, True), (0.3, 0.4, False), (0.0, 0.0, False)]
)
def test_a_change_of_gradients_that_depends_on_the_loss_scale_is_an_error_without_a_deviation(
    noted, rule, without, scaled, certain
):
    misuse = Misuse(Location("train.py", 9), "SGD")
    seen = {"misuses": {noted: misuse}, "changed_by": [(without, 1.0)]}
    assert [each.rule for each in told(seen=seen, noted={"changed_by": [(scaled, 1.0)]})] == [rule] * certain
    strays = told(tuple(2 * loss for loss in LOSSES), seen=seen, noted={"changed_by": [(scaled, 1.0)]})
    assert (rule in [each.rule for each in strays]) is certain
    seen["misuses"]["clips_scaled"] = misuse
    assert told(seen=seen, noted={"changed_by": [(scaled, 1.0)]})[1:] == []


def test_a_change_of_scaled_gradients_is_located_at_its_line():
    seen = {"misuses": {"changes_scaled": Misuse(Location("train.py", 9), "SGD")}, "changed_by": [(0.3, 1.0)]}
    (found,) = told(seen=seen, noted={"changed_by": [(1e-5, 1.0)], "changes_gradients": Location("clip.py", 3)})
    assert (found.rule, found.location) == ("PA502", Location("clip.py", 3))


@pytest.mark.parametrize(("left", "rules"), [(0.001, ["PA502"]), (0.2, [])])
def test_a_hook_whose_change_depends_on_the_loss_scale_is_an_error(left, rules):
    seen = {"misuses": {"hooks": Misuse(Location("train.py", 9))}, "hooked_by": (0.9, left)}
    assert [each.rule for each in told(seen=seen, noted={"hooked_by": (1.0, 0.1)})] == rules


def test_a_sine_of_rounded_angles_explains_a_deviation():
    _, cause = told(tuple(2 * loss for loss in LOSSES), low=[absorbed("", 0.4, "sin")])
    assert (cause.rule, cause.op) == ("PA106", "sin")
    assert "is off by 40% of its result, because its angle is rounded" in cause.message


def test_an_absorbing_buffer_is_told_apart_from_its_neighbour():
    mean, var = told(low=[state("norm", "running_mean", 0.9), state("norm", "running_var", 0.9)])
    assert mean.message.startswith("norm.running_mean is kept in bfloat16")
    assert (mean.rule, mean.severity, mean.fqn, mean.location) == ("PA303", "warning", "norm", Location("train.py", 5))
    assert mean.fingerprint != var.fingerprint


def test_an_absorbing_weight_is_named_by_its_module():
    (found,) = told(low=[state("body.0", "", 0.9)])
    assert found.message.startswith("a weight of body.0 is kept in bfloat16")


def test_lost_updates_of_a_weight_are_reported_once():
    weight = TensorRecord("weight", TensorStats(8), "weight", dtype="bfloat16")
    gradient = TensorRecord("weight_grad", TensorStats(8), "weight")
    update = TensorRecord("update", TensorStats(8, zeros=8), "weight")
    trace = Trace(layers=(Layer("norm", "LayerNorm", 8, 1, (weight, gradient, update)),))
    low = [state("norm", "", 1.0), state("norm", "running_mean", 1.0), state("other", "", 1.0)]
    casts = [Cast(Location("train.py", line), name) for line, name in ((3, "float16"), (4, "bfloat16"))]
    own = OwnPrecision(low=low, casts=casts)
    written = RunResult("as-written", 0, "stopped", len(LOSSES), losses=LOSSES, trace=trace, own_precision=own)
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    found = all_findings(audit, Plan(), Verification("pass", "emulated"))
    told = [(each.rule, each.fqn, each.evidence.get("role")) for each in found]
    assert told == [("PA301", "norm", None), ("PA303", "norm", "running_mean"), ("PA303", "other", None)]
    assert found[0].location == Location("train.py", 4)


def test_lost_updates_of_the_outermost_modules_weight_are_reported_once():
    weight = TensorRecord("weight", TensorStats(8), "scale", dtype="bfloat16")
    gradient, update = (
        TensorRecord("weight_grad", TensorStats(8), "scale"),
        TensorRecord("update", TensorStats(8, zeros=8), "scale"),
    )
    state_in_half = TensorRecord("optimizer_state", TensorStats(8, zeros=8), "scale.exp_avg_sq", dtype="float16")
    trace = Trace(layers=(Layer("", "Clip", 8, 1, (weight, gradient, update, state_in_half)),))
    casts = (Cast(Location("train.py", 3), "float16"),)
    own = OwnPrecision(casts=casts, low=[state("", "", 1.0), state(None, "", 1.0)])
    written = RunResult("as-written", 0, "stopped", len(LOSSES), losses=LOSSES, trace=trace, own_precision=own)
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    found = all_findings(audit, Plan(), Verification("pass", "emulated"))
    assert [(each.rule, each.fqn) for each in found] == [("PA301", ""), ("PA302", ""), ("PA303", None)]
    assert found[1].location == casts[0].place
    rounded, vanished, nobodys = (each.message for each in found)
    assert rounded.startswith("scale: 100% of its updates")
    assert vanished.startswith("the model itself: 100% of scale.exp_avg_sq is zero")
    assert nobodys.startswith("a running value is kept")


@pytest.mark.parametrize(("far", "rules"), [(1.0, []), (0.5, ["PA301"])])
def test_weights_that_move_as_far_as_in_float32_are_no_finding(far, rules):
    """Few of the updates change a weight under compensated summation and stochastic rounding too. How far a bias of a
    few values went isn't known."""
    tensors = tuple(
        TensorRecord(role, TensorStats(numel=8, zeros=7 * (role == "update")), name, "bfloat16")
        for name in ("weight", "bias")
        for role in ("weight", "update", "weight_grad")
    )
    trace = Trace(layers=(Layer("norm", "LayerNorm", 8, 1, tensors),))
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES)
    reference = replace(reference, end_state=EndState(learned={"model.norm.weight": 1.0, "teacher.norm.weight": 0.0}))
    own = OwnPrecision(low=[state("norm", "", 1.0)])
    written = replace(reference, label="as-written", trace=trace, own_precision=own)
    written = replace(written, end_state=EndState(learned={"model.norm.weight": far, "teacher.norm.weight": 0.0}))
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    found = all_findings(audit, Plan(), Verification("pass", "emulated"))
    assert [each.rule for each in found] == rules


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bfloat16_weights_may_also_be_rounded_stochastically(dtype):
    """torchao rounds updates so of bfloat16 weights alone, and float16 has no range for their gradients anyway."""
    tensors = tuple(
        TensorRecord(role, TensorStats(numel=8, zeros=8 * (role == "update")), "weight", dtype)
        for role in ("weight", "update", "weight_grad")
    )
    casts = [Cast(Location("train.py", 3), dtype)]
    (noted,) = told(low=[TrainedLow(None)], noted={"casts": casts})
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES)
    written = replace(reference, label="as-written", own_precision=OwnPrecision(casts=casts))
    written = replace(written, trace=Trace(layers=(Layer("norm", "LayerNorm", 8, 1, tensors),)))
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    (lost,) = all_findings(audit, Plan(), Verification("pass", "emulated"))
    assert (noted.rule, lost.rule) == ("PA503", "PA301")
    assert {"stochastic" in each.suggestion for each in (noted, lost)} == {dtype == "bfloat16"}


def test_a_ban_in_the_scripts_own_format_is_the_likeliest_cause():
    place = Location("train.py", 9)
    grave, other = (
        Ban("PA104", "front", "add", name, "warning", f"add's eps is zero in {name}", "", "other", place)
        for name in ("float16", "bfloat16")
    )
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, own_precision=OwnPrecision(autocast="float16"))
    written = replace(reference, label="as-written", losses=tuple(2 * loss for loss in LOSSES))
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), (other, grave), as_written=written)
    (found,) = of_as_written(audit, PASSED)
    assert found.message.endswith("the likeliest cause is in front: add's eps is zero in float16, at train.py:9")


def test_low_precision_products_in_an_optimizers_step_explain_a_deviation():
    product = absorbed("", 0.001, "matmul")
    strayed = tuple(2 * loss for loss in LOSSES)
    written, cause = told(strayed, low=[replace(product, region_steps=True)])
    assert (written.rule, cause.rule, cause.severity, cause.op) == ("PA501", "PA511", "error", "matmul")
    assert cause.location == Location("train.py", 7)
    assert [each.rule for each in told(strayed, low=[product])] == ["PA501"]


@pytest.mark.parametrize(
    ("student", "teacher", "rules"),
    [(1.0, 0.3, ["PA303"]), (1.0, 0.8, []), (1.0, 2.4, ["PA303"]), (1.4, 0.8, [])],
)
def test_a_stagnating_teacher_is_reported_though_its_student_keeps_pace(student, teacher, rules):
    """The teacher goes 0.8 in float32: rounding that always goes the same way may move it farther, but a student that
    rounds at random is moved farther too."""
    gradient = TensorRecord("weight_grad", TensorStats(numel=8), "weight", "float32")
    trace = Trace(layers=(Layer("norm", "LayerNorm", 8, 1, (gradient,), "student"),), models=("student",))
    exact = EndState(learned={"student.norm.weight": 1.0, "teacher.norm.weight": 0.8})
    written = replace(exact, learned={"student.norm.weight": student, "teacher.norm.weight": teacher})
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, end_state=exact)
    low = OwnPrecision(low=[state("norm", "", 1.0)])
    run_as_written = replace(reference, label="as-written", trace=trace, end_state=written, own_precision=low)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=run_as_written)
    found = all_findings(audit, Plan(), Verification("pass", "emulated"))
    assert [each.rule for each in found if each.severity != "note"] == rules


@pytest.mark.parametrize(
    ("float32", "written", "steps", "models"),
    [
        ({"average.weight": 0.2, "average.bias": 0.1}, {"average.weight": 0.0, "average.bias": 0.0}, 80, "average"),
        ({"average.weight": 0.2, "average.bias": 0.1}, {"average.weight": 0.1, "average.bias": 0.0}, 80, ""),
        ({"average.0.weight": 0.2}, {"average.0.weight": 0.0}, 40, ""),
        ({"average.0.weight": 0.2}, {}, 80, ""),
        ({"frozen.0.weight": 0.0}, {"frozen.0.weight": 0.0}, 80, ""),
        ({"student.0.weight": 0.2}, {"student.0.weight": 0.0}, 80, ""),
    ],
)
def test_an_average_that_stands_still_is_an_error(float32, written, steps, models):
    """Weights that a gradient trains are judged by their updates; one that moves at all follows; and a run of fewer
    steps may not have come to the update."""
    gradient = TensorRecord("weight_grad", TensorStats(numel=8), "weight", "float32")
    trace = Trace(layers=(Layer("0", "Linear", 8, 1, (gradient,), "student"),), models=("student",))
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, end_state=EndState(learned=float32))
    own = OwnPrecision(low=[RoundedConstant(Location("train.py", 13), "bfloat16", 0.999, 1.0)])
    ended = replace(reference, steps=steps, trace=trace, end_state=EndState(learned=written), own_precision=own)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=ended)
    found = [each for each in all_findings(audit, Plan(), PASSED) if each.rule == "PA303"]
    assert [(each.severity, each.location, each.message.partition(":")[0]) for each in found] == (
        [("error", Location("train.py", 13), models)] if models else []
    )


@pytest.mark.parametrize(
    ("moved", "steps", "severity"),
    [
        ((0.02, 0.01), 80, "error"),
        ((0.15, 0.01), 80, "warning"),  # one that follows shows that the others' losses do little
        ((0.02, 0.01), 40, "warning"),  # a run that ended early had less time to move
    ],
)
def test_a_target_that_was_measured_to_lag_is_an_error_though_the_loss_agrees(moved, steps, severity):
    names = ("target.0.weight", "target.0.bias")
    trace = Trace(layers=(Layer("0", "Linear", 8, 1, (), "target"),), models=("student", "target"))
    end = EndState(learned=dict.fromkeys(names, 0.2))
    reference = RunResult("reference", 0, "stopped", 80, losses=LOSSES, end_state=end)
    own = OwnPrecision(low=[state("0", "", 0.95, "target")])
    end = EndState(learned=dict(zip(names, moved, strict=True)))
    ended = replace(reference, steps=steps, trace=trace, end_state=end, own_precision=own)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=ended)
    found = [each for each in all_findings(audit, Plan(), PASSED) if each.rule == "PA303"]
    assert [(each.fqn, each.severity) for each in found] == [("target.0", severity)]


def test_a_number_that_becomes_one_is_a_note_and_explains_a_deviation():
    low = [RoundedConstant(Location("train.py", 13), "bfloat16", 0.999, 1.0)]
    (note,) = told(low=low)
    assert (note.rule, note.severity, note.location) == ("PA104", "note", Location("train.py", 13))
    assert note.message.startswith("the script makes a bfloat16 tensor of 0.999 here, which is 1 in that format")
    strayed = told(tuple(2 * loss for loss in LOSSES), low=low)
    assert [(each.rule, each.severity) for each in strayed] == [("PA501", "error"), ("PA104", "error")]


def test_low_precision_state_that_does_no_harm_yet_is_named():
    low = [state("norm", "count", 0.0), state("norm", "total", 0.05), state("norm", "square", 0.11)]
    (found,) = told(low=low)
    assert (found.rule, found.severity, found.location) == ("PA503", "note", low[2].place)
    assert "what it keeps there (norm.square, norm.total) does not change" in found.message
    assert found.message.endswith("; so far up to 11.0% of the energy of its changes was lost, which did no harm")
    assert "; so far less than 0.1% of" in told(low=[state("norm", "total", 1e-5)])[0].message


def test_low_precision_state_is_mentioned_only_where_it_changes():
    assert told() == []
    for entry in (state("norm", "running_mean", 0.01), TrainedLow(None)):
        assert [(found.rule, found.severity) for found in told(low=[entry])] == [("PA503", "note")]


def test_a_penalty_on_scaled_gradients_is_reported_where_it_changes_the_first_loss():
    noted = {"penalizes_scaled": Location("train.py", 30)}
    assert [found.rule for found in told((900.0, *LOSSES[1:]), noted=noted)] == ["PA507"]
    assert told(tuple(1.01 * loss for loss in LOSSES), noted=noted) == []


def test_an_unscaled_loss_is_reported_with_its_line():
    for mixed, said in ((True, "almost nothing"), (False, "SGD steps")):
        noted = OwnPrecision(misuses={"unscaled_loss": Misuse(Location("train.py", 30), "SGD", mixed)})
        reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, own_precision=noted)
        audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace())
        (found,) = of_as_written(audit, Verification("pass", "emulated"))
        assert (found.rule, found.severity, found.location) == ("PA508", "error", Location("train.py", 30))
        assert said in found.message


def test_a_second_step_on_the_scalers_gradients_is_an_error_without_a_deviation():
    noted = OwnPrecision(misuses={"steps_again": Misuse(Location("train.py", 30), "SGD")})
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, own_precision=noted)
    (found,) = of_as_written(Audit(Job("script", "train.py", (), ".", 80), reference, Trace()), Verification("pass"))
    assert (found.rule, found.severity, found.location) == ("PA504", "error", Location("train.py", 30))


def test_gradients_scaled_after_unscaling_are_reported_before_the_overflow_that_follows():
    noted = OwnPrecision(misuses={"adds_scaled": Misuse(Location("train.py", 30))})
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, own_precision=noted)
    own = OwnPrecision(low=[Overflow(None, "float16", "linear", 9e4, 4)])
    lost = replace(reference, label="as-written", losses=(math.nan,) * len(LOSSES), own_precision=own)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=lost)
    found = of_as_written(audit, Verification("pass", "emulated"))
    assert [(each.rule, each.severity) for each in found] == [
        ("PA506", "error"),
        ("PA501", "error"),
        ("PA307", "warning"),
    ]


def test_stale_weights_under_an_open_autocast_are_an_error_after_several_steps():
    for steps, severity, age in ((1, "warning", "1 step ago"), (59, "error", "59 steps ago")):
        noted = OwnPrecision(stale_casts=StaleCast(Location("train.py", 30), "encoder", "Adam", steps))
        reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES, own_precision=noted)
        audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace())
        (found,) = of_as_written(audit, Verification("pass", "emulated"))
        assert (found.rule, found.severity, found.location) == ("PA509", severity, Location("train.py", 30))
        assert age in found.message


def test_an_ineffective_decay_is_reported_unless_the_state_stagnates():
    decay = VainDecay(Location("train.py", 5), None, "norm", "v", "bfloat16", 0.999)
    (found,) = told(low=[decay, state("norm", "v", 0.01)])
    assert (found.rule, found.severity, found.fqn) == ("PA303", "warning", "norm")
    assert "multiplied by 0.999 in every step, which changes nothing" in found.message
    assert len(told(low=[decay, state("norm", "v", 0.9)])) == 1


def audited(code, folder, steps=8, name="bfloat16"):
    """`code` run as a script's training is, in this process."""
    job = Job("script", "train.py", (), str(folder), steps)
    return run_audit(job, (name, "float32"), "emulated", InProcess(code), str(folder))


def test_casts_for_the_scripts_own_autocast_are_disabled_with_it(tmp_path):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            x = torch.randn(16, 4)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (model(x.bfloat16()) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    audit = audited(code, tmp_path)
    assert audit.complete
    assert audit.neutralize
    assert audit.as_written.status == "stopped"
    assert audit.as_written.losses != audit.reference.losses
    assert audit.as_written.own_precision.casts


def test_a_script_that_fails_because_of_its_own_casts_trains_in_float32(tmp_path):
    """Advantages in half: where all rewards are alike, their eps is zero, and so is their deviation."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(8):
            x = torch.randn(16, 4)
            rewards = (x.sum(1, keepdim=True) * (step < 5)).half()
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
            loss = (model(x) - advantages.float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not model.weight.isfinite().all():
                raise ValueError("probability tensor contains nan")

    audit = audited(code, tmp_path)
    assert (audit.complete, audit.neutralize) == (True, True)
    found = {each.rule: each for each in of_as_written(audit, Verification("pass", "emulated"))}
    assert "stops at step 6" in found["PA501"].message
    assert (found["PA307"].op, found["PA307"].evidence["step"]) == ("div", 5)


def test_half_weights_that_torchs_scaler_refuses_are_an_error(tmp_path):
    def code():
        torch.manual_seed(0)
        model, scaler = nn.Linear(4, 1).half(), torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(16, 4).half()).float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()

    audit = audited(code, tmp_path, name="float16")
    assert (audit.complete, audit.neutralize, audit.as_written.steps) == (True, True, 0)
    found = {each.rule: each for each in of_as_written(audit, Verification("pass", "emulated"))}
    assert found["PA501"].severity == "error"
    assert found["PA501"].suggestion.startswith("keep the weights in float32")


@pytest.mark.parametrize("casts", [False, True])
def test_a_loss_in_the_scripts_own_autocast_runs_as_written(casts, tmp_path):
    """Cubes that overflow float16, in the loop and in no module."""

    def code():
        torch.manual_seed(0)
        model, scaler = nn.Linear(4, 1), torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        for _ in range(8):
            x = torch.randn(16, 4)
            target = 100 * x.sum(1, keepdim=True)
            with torch.autocast("cpu", dtype=torch.float16):
                off = model(x) - (target.half() if casts else 100 * (x @ torch.ones(4, 1)))
                loss = (off * off * off.abs()).mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    audit = audited(code, tmp_path)
    assert audit.complete
    assert audit.neutralize == casts
    found = {each.rule: each for each in of_as_written(audit, Verification("pass", "emulated"))}
    assert found["PA501"].severity == "error"
    assert found["PA307"].op == "mul"


def test_effects_of_own_casts_before_a_failure_are_reported(tmp_path):
    """The last rows' ids round up to one that the table lacks."""

    def code():
        torch.manual_seed(0)
        model = nn.EmbeddingBag(6000, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(8):
            ids = torch.arange(5000, 5016) if step < 6 else torch.arange(5984, 6000)
            optimizer.zero_grad()
            model(ids.half().long()[:, None]).square().mean().backward()
            optimizer.step()

    audit = audited(code, tmp_path)
    assert (audit.reference.steps, audit.as_written.status, audit.as_written.steps) == (8, "failed", 6)
    found = of_as_written(audit, Verification("pass", "emulated"))
    assert [(each.rule, each.severity) for each in found] == [("PA501", "warning"), ("PA306", "warning")]
    assert {each.location.path for each in found} == {__file__}


def test_gradients_that_a_hook_casts_are_reported_with_its_line(tmp_path):
    """As where they are sent to others in 16 bits: those of a small loss are zero there."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient.half().to(gradient.dtype))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e8)
        for _ in range(8):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            ((model(x) - x.sum(1, keepdim=True)).square().mean() * 1e-9).backward()
            optimizer.step()

    audit = audited(code, tmp_path)
    assert audit.reference.losses[-1] < 0.5 * audit.as_written.losses[-1]
    found = of_as_written(audit, Verification("pass", "emulated"))
    assert [(each.rule, each.severity) for each in found] == [("PA501", "error"), ("PA309", "error")]
    assert found[0].location == found[1].location


def test_a_plan_that_the_script_applies_runs_as_written(tmp_path):
    """In float16, and without the loss scale that its gradients need."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e7)
        precaudit.apply(model, Plan("float16", {"": "float16"}))
        for _ in range(8):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            ((model(x) - x.sum(1, keepdim=True)).square().mean() * 1e-8).backward()
            optimizer.step()

    audit = audited(code, tmp_path, name="float16")
    assert audit.reference.own_precision.plan == "float16"
    assert audit.as_written.losses[-1] == pytest.approx(audit.reference.losses[0], rel=1.0)
    assert audit.reference.losses[-1] < 0.5 * audit.as_written.losses[-1]


def test_a_script_that_ends_early_is_probed_within_its_own_steps(tmp_path):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()

    audit = audited(code, tmp_path, steps=60)
    assert (audit.job.steps, audit.reference.steps) == (20, 20)
    assert [error.label for error in audit.errors] == ["bfloat16@init", "bfloat16@late"]
    assert audit.replay_spec.patience == audit.reference.patience


def test_nonfinite_outputs_that_no_loss_uses_are_reported_where_nothing_explains_them():
    lost = EndState(lost={"critic": 30, "model": 10})
    (found,) = told(end_state=lost, noted={"low": [], "casts": []}.items())
    assert (found.rule, found.severity, found.evidence["step"]) == ("PA307", "error", 10)
    assert found.message.startswith("model: outputs are nan or inf in the script's own low precision, first after 10")
    assert [each.rule for each in told(tuple(2 * loss for loss in LOSSES), end_state=lost)] == ["PA501"]


@pytest.mark.parametrize(
    ("ended", "in_float32", "kept"),
    [
        (EndState(buffers=("mask", "bn.running_var")), EndState(moved={"mask": 0.0}), "bn.running_var"),
        (EndState(optimizer_state=("Adam.exp_avg_sq",)), EndState(), "Adam.exp_avg_sq"),
        (EndState(buffers=("mask",)), EndState(moved={"mask": 0.0}), None),
        (EndState(buffers=("best",)), EndState(buffers=("best",), moved={"best": 1.0}), None),
    ],
)
def test_nonfinite_states_that_no_loss_shows_are_reported_where_float32_keeps_them_finite(ended, in_float32, kept):
    found = told(end_state=ended, reference_end=in_float32, noted={"low": [], "casts": CASTS}.items())
    assert [each.rule for each in found] == (["PA307"] if kept else [])
    for each in found:
        assert each.message.startswith(f"{kept}: nan or inf at the end")
        assert (each.severity, each.location) == ("error", Location("train.py", 3))


def test_a_running_variance_that_overflows_in_half_is_named(tmp_path):
    """The loss of a training step is that of the batch's own statistics."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)).half()
        model.register_buffer("unused", torch.tensor(-1e9).half())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(16):
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            (model((900 * x).half()).float() - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()

    audit = audited(code, tmp_path, steps=16)
    (found,) = (each for each in of_as_written(audit, PASSED) if each.rule == "PA307" and each.severity == "error")
    assert found.message.startswith("0.running_var: nan or inf at the end")


@pytest.mark.parametrize(
    ("fqn", "buffer", "kept"),
    [("bn", "running_var", "bn.running_var"), ("bn", "", "a weight of bn"), (None, "", "a running value")],
)
def test_a_stagnating_state_is_named_by_its_kind(fqn, buffer, kept):
    (found,) = (each for each in told(low=[state(fqn, buffer, 0.9)]) if each.rule == "PA303")
    assert found.message.startswith(f"{kept} is kept in bfloat16")
    assert found.message.endswith("rounding loses 90% of their energy, so it stagnates (it hardly moves)")


def watched(prepared, folder, monkeypatch):
    """For each run that an audit makes, its precision and how many calls were watched in it."""
    calls, original = [0], OwnLowPrecision.__torch_function__

    def counting(self, *args, **kwargs):
        calls[0] += 1
        return original(self, *args, **kwargs)

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            x = torch.randn(16, 4)
            loss = (model(prepared(x)) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    class Counted(InProcess):
        runs = []

        def __call__(self, spec):
            calls[0] = 0
            result = super().__call__(spec)
            self.runs.append((spec.precision, calls[0]))
            return result

    monkeypatch.setattr(OwnLowPrecision, "__torch_function__", counting)
    job, runner = Job("script", "train.py", (), str(folder), 8), Counted(code)
    run_audit(job, ("bfloat16", "float32"), "emulated", runner, str(folder))
    return runner.runs


def test_only_a_script_with_low_precision_of_its_own_is_watched(tmp_path, monkeypatch):
    """To watch every operation takes many times as long as the operation."""
    assert all(run == ("float32", 0) for run in watched(lambda x: x, tmp_path, monkeypatch))


def test_a_script_that_casts_is_watched_in_a_run_of_its_own(tmp_path, monkeypatch):
    runs = watched(lambda x: x.bfloat16().float(), tmp_path, monkeypatch)
    assert [precision for precision, calls in runs if calls] == ["own-casts"]
