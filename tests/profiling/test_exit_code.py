"""What a pipeline is told by the number alone."""

import pytest

from precaudit.errors import ExitCode, PrecauditError
from precaudit.model import Plan, Verification
from precaudit.profiling.audit import Audit, require_measurable
from precaudit.profiling.engine import _exit_code
from precaudit.profiling.settings import Settings
from precaudit.running.job import Job, RunResult
from precaudit.tracing.records import Trace

LOW, FLOAT32 = Plan(default="bfloat16"), Plan(default="float32")


@pytest.mark.parametrize(
    ("plan", "verdict", "verify", "losses", "expected"),
    [
        (LOW, "pass", True, (1.0,), ExitCode.OK),
        (LOW, "screened", True, (1.0,), ExitCode.OK),
        (LOW, "fail", True, (1.0,), ExitCode.FINDING),
        (LOW, "inconclusive", True, (1.0,), ExitCode.FINDING),
        (FLOAT32, "pass", True, (1.0,), ExitCode.FINDING),
        (LOW, "not_run", False, (1.0,), ExitCode.OK),
        (LOW, "not_run", False, (1.0, float("nan")), ExitCode.FINDING),
        (FLOAT32, "not_run", False, (1.0,), ExitCode.FINDING),
    ],
)
def test_only_a_plan_below_float32_is_a_success(plan, verdict, verify, losses, expected):
    run = RunResult("reference", 0, "stopped", losses=losses)
    audit = Audit(Job("script", "train.py", (), ".", 10), run, Trace())
    assert _exit_code(audit, plan, Verification(verdict=verdict), Settings(verify=verify)) is expected


@pytest.mark.parametrize("there", [True, False])
def test_a_script_that_trained_nothing_is_asked_whether_it_needs_a_gpu_where_there_is_none(there, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    job = Job("script", "train.py", (), ".", 8)
    with pytest.raises(PrecauditError, match="without a backward pass") as refused:
        require_measurable(Audit(job, RunResult("reference", 0, "ended", 0), Trace()))
    assert refused.value.exit_code == ExitCode.NOTHING_TO_MEASURE
    assert ("torch finds no GPU here" in str(refused.value)) is not there
