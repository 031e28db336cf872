"""What is said of a script's own low precision, from one run of it as written beside float32."""

from precaudit.model import Location, Verification
from precaudit.profiling.aswritten import of_as_written
from precaudit.profiling.audit import Audit
from precaudit.running.job import Job, RunResult, ScriptError
from precaudit.tracing.records import Trace

LOSSES = tuple(1.0 - step / 100 for step in range(80))
CASTS = [{"path": "train.py", "line": 3, "dtype": "bfloat16"}]


def told(losses=LOSSES, status="stopped", low=(), **fields):
    """(rule, severity, message) of every finding."""
    baseline = {"casts": CASTS, "low": list(low)}
    written = RunResult("as-written", 0, status, len(losses), losses=losses, baseline=baseline, **fields)
    reference = RunResult("reference", 0, "stopped", len(LOSSES), losses=LOSSES)
    audit = Audit(Job("script", "train.py", (), ".", 80), reference, Trace(), as_written=written)
    return [(f.rule, f.severity, f.message) for f in of_as_written(audit, Verification("pass", "emulated"))]


def test_a_script_that_strays_is_an_error():
    ((rule, severity, message),) = told(tuple(2 * loss for loss in LOSSES))
    assert (rule, severity) == ("PA501", "error")
    assert "doesn't train like float32" in message


def test_a_script_that_stops_as_written_may_only_lack_a_kernel_of_this_machine():
    error = ScriptError("RuntimeError", "no float16 kernel", "", Location("train.py", 9))
    ((rule, severity, message),) = told(LOSSES[:2], "failed", error=error)
    assert (rule, severity) == ("PA501", "warning")
    assert "stops at step 2 on this machine: no float16 kernel" in message
