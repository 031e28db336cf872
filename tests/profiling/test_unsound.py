"""Why float32 itself lost its loss: the operation, its backward or the data, found by one more run."""

import math
from dataclasses import replace

import pytest

from precaudit.model import Location, Trial, Verification
from precaudit.ownprecision.records import (
    NonFiniteData,
    NonFiniteGradient,
    NonFiniteLoss,
    OwnPrecision,
    RunawayScale,
)
from precaudit.profiling.audit import Audit
from precaudit.profiling.findings.unsound import of_float32, origin_of_nonfinite
from precaudit.running.job import Job, RunResult
from precaudit.tracing.records import Trace

PLACE = Location("train.py", 8)
MADE = NonFiniteLoss(PLACE, "log", 2, "head", True, 0.5)
DATA = NonFiniteData(PLACE, "linear", 2, True, 1, 512, "stem")
BACKWARD = NonFiniteGradient(PLACE, "sqrt", True, 1, "norm")


def audit_of(*losses, status="stopped"):
    reference = RunResult("reference", 0, status, len(losses), losses=losses)
    return Audit(Job("script", "train.py", (), ".", 60), reference, Trace())


def origin(audit, *entries, trials=()):
    """What is found, and the runs that were made."""
    specs = []

    def runner(spec):
        specs.append(spec)
        run = RunResult(spec.label, spec.seed, "stopped")
        run.own_precision.low = list(entries)
        return run

    return origin_of_nonfinite(audit, Verification(trials=trials), runner), specs


LOST = audit_of(1.0, 0.9, math.nan, math.nan)


@pytest.mark.parametrize("cause", [MADE, DATA, BACKWARD])
def test_the_run_is_repeated_up_to_the_lost_loss(cause):
    found, (spec,) = origin(LOST, cause)
    assert found == cause
    assert (spec.job.steps, spec.seed, spec.precision) == (3, 0, "own-casts")


def test_a_gradient_that_the_weights_took_over_comes_before_what_they_do():
    assert origin(LOST, MADE, BACKWARD)[0] == BACKWARD
    assert origin(LOST, replace(MADE, step=1), replace(BACKWARD, step=0))[0] is None


def test_no_run_is_made_where_no_float32_run_lost_its_loss():
    assert origin(audit_of(1.0, 0.5), trials=[Trial(1, "candidate-1", (math.nan,), 0)]) == (None, [])
    assert origin(audit_of(1.0, math.nan, status="failed")) == (None, [])


def test_no_run_is_made_where_the_script_s_own_scale_is_the_cause():
    written = RunResult("as-written", 0, "stopped", own_precision=OwnPrecision(low=[RunawayScale(None, 1e13, 2)]))
    assert origin(replace(LOST, as_written=written), MADE) == (None, [])


def test_the_run_has_the_seed_that_lost_its_loss():
    _, (spec,) = origin(audit_of(1.0, 0.5), trials=[Trial(2, "reference", (1.0, math.inf), 0)])
    assert (spec.seed, spec.job.steps) == (2, 2)


@pytest.mark.parametrize(
    ("cause", "fqn", "said", "remedy"),
    [
        (MADE, "head", "log makes nan of finite values, none larger than 0.5", "clamp"),
        (replace(MADE, nan=False, amax=1e25), "head", "log makes inf, as the training diverges", "learning rate"),
        (replace(MADE, amax=None), "head", "log makes nan of infinite values", "masked"),
        (BACKWARD, "norm", "the backward of sqrt makes nan at step 1", "eps"),
        (DATA, "stem", "nan came with the data, as 1 of the 512 values that linear reads", "torch.isfinite"),
    ],
)
def test_the_cause_is_told_with_its_line_and_a_remedy(cause, fqn, said, remedy):
    (found,) = of_float32(LOST, Verification(), cause)
    assert (found.rule, found.fqn, found.op, found.location) == ("PA603", fqn, cause.op, PLACE)
    assert found.message.startswith("the loss is not finite in float32 itself, from step 2 on (seed 0): " + said)
    assert remedy in found.suggestion


def test_an_unknown_cause_blames_no_operation():
    (found,) = of_float32(LOST, Verification())
    assert (found.fqn, found.op, found.location) == (None, None, None)
    assert "no number format is to blame" in found.message
