"""The command as people run it: exit codes, bad input before any run, and runs in child processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from precaudit.__main__ import main
from precaudit.commands import check
from precaudit.model import Plan
from precaudit.reporting.serialize import write_json
from precaudit.running.child_process import SIGNALS
from precaudit.running.file_guard import set_aside_folder

MODEL_FILE = """\
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

def batches():
    return [torch.randn(16, 8) for _ in range(20)]
"""
TRAINING = """\
import sys
import torch
from torch import nn

model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print("training", sys.argv[1:])
for step in range(100):
    if step == 3 and "--crash" in sys.argv:
        raise ValueError("no more data")
    loss = model(torch.randn(16, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
TYPES = {"0": "Linear", "1": "ReLU", "2": "Linear"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL_FILE)
    (tmp_path / "train.py").write_text(TRAINING)
    write_plan(tmp_path / "plan.json", TYPES)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write_plan(path, types, **fields):
    write_json(path, Plan("bfloat16", dict.fromkeys(types, "bfloat16"), types=types, **fields))


# ---------------------------------------------------------------- runs in child processes


@pytest.mark.parametrize("number", sorted(SIGNALS))
def test_a_signal_ends_the_run_in_one_line(project, number):
    (project / "train.py").write_text(
        TRAINING.replace(
            "    if step == 3", "    print(step, file=open('at', 'w'))\n    time.sleep(0.2)\n    if step == 3"
        ).replace("import sys", "import sys, time")
    )
    command = [sys.executable, "-m", "precaudit", "check", "--plan", "plan.json", "--steps", "99", "train.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (project / "at").exists():
            time.sleep(0.1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "precaudit: interrupted" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", ["ImportError('no libtorch')", "OSError('no libcudart.so')"])
@pytest.mark.parametrize(
    "command", [("profile", "train.py"), ("check", "--plan", "plan.json", "train.py"), ("devices",)]
)
def test_a_torch_that_cannot_be_imported_is_told_in_one_line(project, command, error):
    (project / "broken" / "torch").mkdir(parents=True)
    (project / "broken" / "torch" / "__init__.py").write_text(f"raise {error}")
    path = os.pathsep.join([str(project / "broken"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", *command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("precaudit: what precaudit needs can't be imported")
    assert "no lib" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_file_without_loss_passes_and_is_written_everywhere(project, capfd):
    names = ["check.json", "check.md", "check.sarif", "check.xml", "check.gitlab.json", "check.txt"]
    outputs = [option for name in names for option in ("-o", name)]
    assert main(["check", "--plan", "plan.json", *outputs, "model.py"]) == 0
    captured = capfd.readouterr()
    assert "PASSED: the plan holds for this model and data, bfloat16 on H100" in captured.out
    assert "check plan.json, model.py" in captured.out
    assert "Written: check.json" in captured.err
    assert all((project / name).stat().st_size for name in names)
    data = json.loads((project / "check.json").read_text())
    assert data["passed"] is True
    assert data["job"]["calls"] == 8


def test_a_changed_model_fails_with_annotations(project, capfd):
    write_plan(project / "plan.json", {"0": "Linear", "1": "GELU", "2": "Linear", "3": "Softmax"})
    assert main(["check", "--plan", "plan.json", "--format", "github", "model.py"]) == 1
    out = capfd.readouterr().out
    assert "::error file=model.py,line=1,title=PA705 1::1 was a GELU when the plan was made and is a ReLU now" in out
    assert "title=PA701 3::the plan names 3 (Softmax)" in out


def test_a_training_script_with_arguments(project, capfd):
    arguments = [
        "check",
        "--plan",
        ".",
        "--steps",
        "3",
        "--format",
        "json",
        "--fail-on",
        "PA711",
        "train.py",
        "--lr",
        "1",
    ]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    data = json.loads(captured.out)
    assert data["job"]["argv"] == ["--lr", "1"]
    assert data["job"]["steps"] == 3
    assert "training" not in captured.out


def test_a_script_that_crashes_shows_its_own_traceback(project, capfd):
    assert main(["check", "--plan", "plan.json", "train.py", "--crash"]) == 4
    error = capfd.readouterr().err
    assert "the script failed after 3 optimizer steps" in error
    assert 'File "train.py", line 10, in <module>' in error
    assert 'raise ValueError("no more data")' in error
    assert error.rstrip().endswith("ValueError: no more data")
    assert "precaudit/running" not in error


def test_a_model_file_that_lacks_a_function_is_told_which(project, capfd):
    (project / "model.py").write_text("def build_model():\n    return None\n")
    assert main(["check", "--plan", "plan.json", "model.py"]) == 3
    assert "model.py looks like a model file that lacks `batches`; nothing to measure" in capfd.readouterr().err


# ---------------------------------------------------------------- refused before any run


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ('{"schema_version": 1, "def', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not a precaudit plan"),
        ('{"layers": []}', "not a precaudit plan"),
        ('{"schema_version": 99, "default": "bfloat16", "modules": {}}', "newer precaudit"),
        ('{"schema_version": 1, "default": "bf17", "modules": {}}', "unknown number format 'bf17'"),
        ('{"schema_version": 1, "default": "bfloat16", "modules": {"fc": 16}}', "modules.fc: expected a string"),
        ('{"schema_version": 1, "default": "bfloat16", "modules": {}, "target": "cray-1"}', "unknown GPU 'cray-1'"),
    ],
)
def test_unreadable_plans(project, capsys, content, words):
    (project / "plan.json").write_text(content)
    assert main(["check", "--plan", "plan.json", "model.py"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no script given"),
        (["gone.py"], "there is no script 'gone.py'"),
        (["--steps", "0", "model.py"], "at least one step"),
        (["--tolerance", "much", "model.py"], "--tolerance 'much'"),
        (["--tolerance", "-1", "model.py"], "--tolerance '-1'"),
        (["--tolerance", "nan", "model.py"], "--tolerance 'nan'"),
        (["--formats", "int3", "model.py"], "unknown number format"),
        (["--target", "cray", "model.py"], "unknown GPU 'cray'"),
        (["--fail-on", "sometimes", "model.py"], "--fail-on 'sometimes'"),
        (["-o", "check.html", "model.py"], "can't be written as html"),
        (["-o", "check.doc", "model.py"], "the extension picks the format"),
        (["-o", "model.py", "model.py"], "the extension picks the format"),
        (["-o", "plan.json", "model.py"], "can't be written as plan"),
        (["-o", "old.json", "model.py"], "already exists; pass --force"),
    ],
)
def test_wrong_usage(project, capsys, arguments, words):
    (project / "old.json").write_text("{}")
    assert main(["check", "--plan", "plan.json", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_plan_and_a_missing_option(project, capsys):
    assert main(["check", "--plan", "gone.json", "model.py"]) == 2
    assert "check the path" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["check", "model.py"])
    assert caught.value.code == 2


def test_the_parent_process_imports_no_torch():
    """The fork server does, meanwhile."""
    code = (
        "import sys, precaudit.checking.check, precaudit.checking.rendering, precaudit.commands.check as c;"
        "import precaudit.running.children, precaudit.commands.profiling; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_set_aside_files_are_kept_if_they_cannot_be_restored(project, tmp_path, monkeypatch):
    """A folder that the script filled stands where its file was: all that is left of the file is set aside."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with check._scratch() as folder:
        (set_aside_folder(folder / "script.log")).mkdir()
        (set_aside_folder(folder / "script.log") / "kept").write_text("three days of work")
    assert (folder / ".set-aside" / "kept").read_text() == "three days of work"
    with check._scratch() as folder:
        (folder / "script.log").write_text("said")
    assert not folder.exists()
