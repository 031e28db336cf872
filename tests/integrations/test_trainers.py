"""Real trainers with precaudit in them, each run as its user would run it."""

import subprocess
import sys
from pathlib import Path

import pytest

from precaudit import load_report

TRAINERS = Path(__file__).parent / "trainers"


def run(name, folder, *arguments):
    command = [sys.executable, str(TRAINERS / f"{name}.py"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("hugging_face", "transformer.h.0.mlp.c_fc"), ("lightning_module", "net.0"), ("accelerated", "0")],
)
def test_a_trainer_is_audited_in_its_optimizer_steps(name, layer, tmp_path):
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stderr
    report = load_report(tmp_path / "report.json")
    assert (report.job["steps"], report.job["audited_steps"]) == (12, 3)
    assert report.plan.modules[layer] == "bfloat16"


def test_what_was_measured_before_a_training_failed_is_written(tmp_path):
    done = run("lightning_module", tmp_path, "raise")
    assert "the tenth batch is broken" in done.stderr
    assert load_report(tmp_path / "report.json").job["steps"] == 9
