"""The scripts that precaudit is tested on run plainly, and do what their names promise, without precaudit."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from precaudit.examples import digits_cnn

SCRIPTS = Path(__file__).parent / "scripts"
BAD = SCRIPTS / "bad"
EXAMPLES = Path(digits_cnn.__file__).parent


class Harness:
    """One process with torch imported, which forks a child for each script."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, SCRIPTS / "_run_some_steps.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, *argv, cwd, steps=4, unit="step"):
        request = {"argv": [str(a) for a in argv], "steps": steps, "unit": unit, "cwd": str(cwd)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


@pytest.fixture(scope="session")
def harness():
    harness = Harness()
    yield harness
    harness.close()


def test_package_trains_with_m(harness):
    result = harness.run("-m", "pkg", "--epochs", "2", cwd=SCRIPTS)
    assert result["stopped"], result["output"]


def test_config_file_is_executed(harness, tmp_path):
    result = harness.run(SCRIPTS / "transformer_lm.py", SCRIPTS / "config" / "wide.py", "--batch_size=2", cwd=tmp_path)
    assert result["stopped"], result["output"]
    assert "Overriding: batch_size = 2" in result["output"]


def test_script_writes_where_it_stands(harness, tmp_path):
    harness.run(SCRIPTS / "writes_files.py", cwd=tmp_path, steps=21)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "hparams.json", "log.csv"}
    assert (tmp_path / "checkpoints" / "step_0020.pt").exists()


def test_model_file_can_be_trained_by_somebody_else():
    spec = importlib.util.spec_from_file_location("model_file", SCRIPTS / "model_file.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.build_model()
    optimizer = module.build_optimizer(model)
    losses = []
    for batch in module.batches():
        loss = module.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) >= 200
    assert sum(losses[-20:]) < sum(losses[:20]) / 3


def test_scripts_know_nothing_of_precaudit():
    assert not [p for p in SCRIPTS.rglob("*.py") if "precaudit" in p.read_text() and p.name != "_run_some_steps.py"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "exit_code", "steps", "says"),
    [
        ("no_backward", 0, 0, "80 ["),
        ("crash_step3", 1, 3, "ZeroDivisionError"),
        ("ends_early", 0, 5, "4 "),
        ("sys_exit", 0, 10, "good enough"),
        ("sys_exit_code", 3, 6, "giving up"),
        ("syntax_error", 1, 0, "SyntaxError"),
        ("import_error", 1, 0, "ModuleNotFoundError"),
        ("os_exit", 7, 4, "step 4"),
        ("killed", -signal.SIGKILL, 4, "step 4"),
        ("reads_stdin", 1, 0, "EOFError"),
    ],
)
def test_bad_script_ends_by_itself(harness, tmp_path, name, exit_code, steps, says):
    result = harness.run(BAD / f"{name}.py", cwd=tmp_path, steps=60)
    assert not result["stopped"]
    assert (result["exit"], result["steps"]) == (exit_code, steps), result["output"]
    assert says in result["output"]


def test_prints_megabytes(harness, tmp_path):
    result = harness.run(BAD / "prints_megabytes.py", cwd=tmp_path, steps=20)
    assert result["stopped"]
    assert result["output_bytes"] > 2e6


def test_nan_data(harness, tmp_path):
    result = harness.run(BAD / "nan_data.py", cwd=tmp_path, steps=6)
    assert [math.isfinite(loss) for loss in result["losses"]] == [True, True, False, False, False, False]


def test_no_module(harness, tmp_path):
    assert harness.run(BAD / "no_module.py", cwd=tmp_path)["stopped"]
    assert "nn." not in (BAD / "no_module.py").read_text().replace("nn.Module", "")


def test_swallowed_exceptions_do_not_stop_the_script(harness, tmp_path):
    result = harness.run(BAD / "swallow_exceptions.py", cwd=tmp_path, steps=6)
    assert not result["stopped"]
    assert result["exit"] == 0
    assert result["steps"] == sum(step % 7 != 0 for step in range(200))


def test_relative_data_is_found_only_from_its_own_folder(harness, tmp_path):
    assert harness.run(BAD / "relative_data.py", cwd=BAD)["stopped"]
    elsewhere = harness.run(BAD / "relative_data.py", cwd=tmp_path)
    assert elsewhere["exit"] == 1
    assert "FileNotFoundError" in elsewhere["output"]


# ---------------------------------------------------------------- packaged examples


def test_example_learns(harness, tmp_path):
    result = harness.run(EXAMPLES / "digits_cnn.py", cwd=tmp_path, steps=30)
    assert result["stopped"], result["output"]
    assert sum(result["losses"][-5:]) / 5 < result["losses"][0] - 1


def test_digits_example_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn"):
        digits_cnn.load_data()
