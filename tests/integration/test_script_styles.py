"""Every style of training script: traced without disturbing a bit, trained under a plan, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from precaudit.model import LossScale, Plan
from precaudit.running.children import ChildRunner
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.running.sources import classify

SCRIPTS = Path(__file__).parents[1] / "scripts"
STEPS = 4
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py") if not path.stem.startswith("_"))
HALF = Plan(default="bfloat16")
SCALED = Plan(default="float16", loss_scale=LossScale("dynamic", 2.0**10, 2000, (0, 12), 0.0))
# It asserts the dtype that its own autocast gives, which float32 runs skip: see Job.asserts.
ASSERTS = {"uses_amp"}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChildRunner:
    return ChildRunner(tmp_path_factory.mktemp("log") / "script.log")


def job(name: str, folder: Path) -> Job:
    path = SCRIPTS / f"{name}.py"
    return Job(classify(path), str(path), (), str(folder), STEPS, asserts=name not in ASSERTS)


@pytest.mark.parametrize("name", NAMES)
def test_style(name: str, runner: ChildRunner, tmp_path: Path) -> None:
    what = job(name, tmp_path)
    every = frozenset(range(STEPS))
    plain, traced, half, scaled = runner.many(
        [
            RunSpec(what, "reference"),
            RunSpec(what, "reference", audited=every, shadowed=frozenset({0}), formats=("bfloat16", "float16")),
            RunSpec(what, "candidate-1", precision="plan", plan=HALF),
            RunSpec(what, "candidate-1", precision="plan", plan=SCALED),
        ]
    )
    for run in (plain, traced, half, scaled):
        assert run.status == "stopped", run.error and run.error.traceback
        assert run.steps == STEPS
        assert len(run.losses) == STEPS
    assert traced.losses == plain.losses
    ends = [replace(run.end_state, evaluations={}, refused=list(run.end_state.refused)) for run in (traced, plain)]
    assert ends[0] == ends[1]
    # In eval mode a function mode keeps torch off its fused transformer path, which differs in the last bits.
    for model, (finite, rms) in plain.end_state.evaluations.items():
        assert traced.end_state.evaluations[model] == (finite, pytest.approx(rms, rel=1e-4, abs=1e-5))
    assert_traced(traced)


def assert_traced(run: RunResult) -> None:
    assert run.trace is not None
    trained = [layer for layer in run.trace.layers if layer.trained]
    roles = {tensor.role for layer in trained for tensor in layer.tensors}
    assert {"activation", "activation_grad", "weight"} <= roles
    for layer in run.trace.layers:
        for tensor in layer.tensors:
            stats = tensor.stats
            assert stats.numel == stats.exponents.total + stats.zeros + stats.nonfinite


def test_module_with_arguments(runner: ChildRunner) -> None:
    run = runner(RunSpec(Job("module", "pkg", ("--lr", "0.01"), str(SCRIPTS), STEPS), "reference"))
    assert run.status == "stopped", run.error and run.error.traceback


def test_seeds_are_paired_and_differ(runner: ChildRunner, tmp_path: Path) -> None:
    what = job("vae", tmp_path)
    first, again, other = runner.many([RunSpec(what, "reference", seed) for seed in (1, 1, 2)])
    assert first.losses == again.losses
    assert first.losses != other.losses
