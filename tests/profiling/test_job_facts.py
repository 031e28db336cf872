"""What a report says about how the script was run."""

import pytest

from precaudit.hardware.peaks import get_gpu
from precaudit.model import Location
from precaudit.ownprecision.records import Cast, OwnPrecision, Scaler
from precaudit.profiling.audit import Audit
from precaudit.profiling.job_facts import job_facts
from precaudit.profiling.settings import Settings
from precaudit.running.job import INTERNAL, Job, RunResult, RunSpec, ScriptError
from precaudit.tracing.records import Trace

SCALER = Scaler(2.0**16, 2000)


@pytest.mark.parametrize(
    ("own", "notes"),
    [
        ({}, []),
        ({"autocast": "bfloat16"}, ["the script's own autocast was off"]),
        ({"autocast": "float16", "grad_scaler": SCALER}, ["the script's own autocast and GradScaler were off"]),
        ({"plan": "bfloat16"}, ["the script's own plan was off"]),
        ({"autocast": "bfloat16", "left_off": "grad_scaler"}, ["the script's own autocast was off"]),
    ],
)
def test_only_disabled_settings_of_the_script_are_named(own, notes):
    job = Job("script", "train.py", (), ".", 8)
    audit = Audit(job, RunResult("reference", 0, "stopped", 8, own_precision=OwnPrecision(**own)), Trace())
    facts = job_facts(job, Settings(), audit, ("bfloat16",), get_gpu("h100"))
    assert [note.partition(" in the float32")[0] for note in facts["notes"]] == notes


@pytest.mark.parametrize("left_off", ["accelerate", "grad_scaler"])
@pytest.mark.parametrize("on_cuda", [False, True])
def test_a_mixed_precision_that_this_machine_leaves_off_is_mentioned(left_off, on_cuda):
    job = Job("script", "train.py", (), ".", 8)
    reference = RunResult("reference", 0, "stopped", 8, own_precision=OwnPrecision(left_off=left_off), on_cuda=on_cuda)
    notes = job_facts(job, Settings(), Audit(job, reference, Trace()), ("float16",), get_gpu("h100"))["notes"]
    assert ["was not measured" in note for note in notes] == ([] if on_cuda else [True])


@pytest.mark.parametrize(
    ("error", "message", "stopped"),
    [
        ("OutOfMemoryError", "it went wrong", "unroomed"),
        (INTERNAL, "it went wrong", "unable"),
        ("ValueError", "it went wrong", "failed"),
        ("ModuleNotFoundError", "No module named 'einops'", "unequipped"),
        ("ImportError", "No module named trian", "unequipped"),
        ("ImportError", "cannot import name 'x' from 'y'", "failed"),
        ("SystemExit", "2", "misused"),
        ("SystemExit", "1", "failed"),
        ("EOFError", "EOF when reading a line", "unanswered"),
        ("EOFError", "Ran out of input", "failed"),  # a file that was cut off
        ("AssertionError", "Torch not compiled with CUDA enabled", "without_gpu"),
        ("RuntimeError", "No CUDA GPUs are available", "without_gpu"),
        ("RuntimeError", "CUDA error: device-side assert triggered", "failed"),
    ],
)
def test_what_ended_a_run_is_told_apart(error, message, stopped):
    job = Job("script", "train.py", (), ".", 8)
    failed = RunResult("reference", 0, "failed", 3, error=ScriptError(error, message, ""))
    facts = job_facts(job, Settings(), Audit(job, failed, Trace()), ("bfloat16",), get_gpu("h100"))
    assert facts["stopped"] == stopped


def test_a_run_that_was_killed_is_not_said_to_have_lacked_memory():
    """Its error says that this is often the reason."""
    job = Job("script", "train.py", (), ".", 8)
    error = ScriptError("ProcessDied", "the script's process was killed by SIGKILL (often: out of memory)", "")
    killed = RunResult("reference", 0, "killed", 3, error=error)
    facts = job_facts(job, Settings(), Audit(job, killed, Trace()), ("bfloat16",), get_gpu("h100"))
    assert facts["stopped"] == "killed"


@pytest.mark.parametrize("neutralize", [False, True])
def test_disabled_casts_are_mentioned(neutralize):
    job = Job("script", "train.py", (), ".", 8)
    own = OwnPrecision(casts=[Cast(Location("train.py", 3), "float16")])
    written = RunResult("as-written", 0, "stopped", 8, own_precision=own)
    reference, spec = RunResult("reference", 0, "stopped", 8), RunSpec(job, "replay", neutralize=neutralize)
    audit = Audit(job, reference, Trace(), as_written=written, replay_spec=spec)
    facts = job_facts(job, Settings(), audit, ("bfloat16",), get_gpu("h100"))
    listed = {"place": {"path": "train.py", "line": 3}, "dtype": "float16", "through": None}
    assert facts["baseline"] == ({"casts": [listed]} if neutralize else {})


def test_where_a_script_changes_its_gradients_is_told_by_its_run_as_written():
    job, own = Job("script", "train.py", (), ".", 8), OwnPrecision(changes_gradients=Location("train.py", 7))
    written = RunResult("as-written", 0, "stopped", 8, own_precision=own)
    audit = Audit(job, RunResult("reference", 0, "stopped", 8), Trace(), as_written=written)
    facts = job_facts(job, Settings(), audit, ("bfloat16",), get_gpu("h100"))
    assert facts["baseline"] == {"changes_gradients": {"path": "train.py", "line": 7}}


@pytest.mark.parametrize(
    ("asked", "seeds", "quick", "note"),
    [
        ({}, 3, False, None),
        ({"quick": True}, 1, True, None),
        ({"quick": True, "seeds": 1}, 1, True, None),
        ({"quick": True, "seeds": 7}, 1, True, "--quick runs one pair: --seeds 7 changed nothing"),
        ({"verify": False}, 0, False, None),
        (
            {"verify": False, "seeds": 7, "quick": True},
            0,
            False,
            "--no-verify runs no pair: --seeds 7 and --quick changed nothing",
        ),
    ],
)
def test_a_report_has_the_seeds_of_the_first_look(asked, seeds, quick, note):
    job = Job("script", "train.py", (), ".", 8)
    audit = Audit(job, RunResult("reference", 0, "stopped", 8), Trace())
    facts = job_facts(job, Settings(**asked), audit, ("bfloat16",), get_gpu("h100"))
    assert (facts["seeds"], facts["quick"], facts["notes"]) == (seeds, quick, [note] if note else [])
