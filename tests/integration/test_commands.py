"""`python -m precaudit profile` as a person runs it: files, exit codes, and messages for what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from precaudit.__main__ import build_parser, main
from precaudit.commands.profiling import finish, job_of
from precaudit.errors import ExitCode, PrecauditError
from precaudit.model import Report
from precaudit.profiling.engine import Outcome
from precaudit.profiling.settings import Settings
from precaudit.reporting.serialize import load_report
from precaudit.running.child_process import SIGNALS
from precaudit.running.children import ChildRunner
from precaudit.running.file_guard import locked
from precaudit.running.job import Job

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONTRACT = Path(__file__).parents[2] / ".." / "shared" / "tools" / "check_contract.py"


ENDLESS = """
import time, torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(10**6):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    print("step", step, flush=True)
    time.sleep(1.0 if step > 2 else 0.0)
"""

COMMAND = ("profile", "--out", "out", "--steps", "6", "--quick")

Done = subprocess.CompletedProcess[str]

PATIENCE = 300.0
"""Seconds, much longer than a busy machine takes: what hangs never ends."""


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, as a terminal has it; nothing of it outlives the test."""
    command = [sys.executable, "-m", "precaudit", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "that never came"
        time.sleep(0.02)


def profile(folder: Path, script: Path, *options: str, arguments: tuple[str, ...] = ()) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "precaudit", *COMMAND, *options, str(script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def profile_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """The same command in this process, whose fork server has imported torch for the test before."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(script: Path, *options: str) -> Done:
        arguments = [*COMMAND, *options, str(script)]
        code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_two_profiles_do_not_share_a_folder(tmp_path: Path, profile_here: Callable[..., Done]) -> None:
    """The second would put back what the first one's runs have set aside."""
    out = tmp_path / "out"
    out.mkdir()
    with locked(out):
        done = profile_here(SCRIPTS / "manual_sgd.py")
    assert done.returncode == 2
    assert "another profile is running into out" in done.stderr
    assert not any(out.iterdir())
    with locked(out, "the profile that was refused has the lock"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_costs_nothing_that_was_measured(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "train.py"
    script.write_text(ENDLESS)
    log = tmp_path / "out" / "script.log"
    with started(tmp_path, *COMMAND, str(script)) as process:
        wait_for(process, lambda: log.exists() and "step 3" in log.read_text())
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    assert "interrupted" in said
    assert "what was measured is in out" in said
    assert report_in(tmp_path)["layers"]


def report_in(folder: Path) -> dict:
    return json.loads((folder / "out" / "report.json").read_text())


def test_a_script_with_arguments_writes_every_file(tmp_path: Path) -> None:
    done = profile(tmp_path, SCRIPTS / "argparse_main.py", "--steps", "24", arguments=("--lr", "0.01"))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report.json", "report.html", "report.md", "plan.json", "script.log"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    for text in (done.stdout, (tmp_path / "out" / "report.md").read_text()):
        assert '\nplan = precaudit.load_plan("out/plan.json")\n' in text.replace("\n  ", "\n")
    report = report_in(tmp_path)
    assert report["job"]["argv"] == ["--lr", "0.01"]
    assert report["verification"]["verdict"] == "screened"
    timed = report["performance"]["step_seconds"]
    assert timed.keys() == {"float32", "tf32", "amp", "plan"}
    assert timed["float32"] > 0
    if report["environment"]["cuda"] is None:
        assert [timed[arm] for arm in ("tf32", "amp", "plan")] == [None] * 3
        assert report["performance"]["gpu"] is report["performance"]["prediction_error"]["plan"] is None
        assert not report["tensor_cores"]["measured"]
    assert max(len(line) for line in done.stdout.splitlines() if str(SCRIPTS) not in line) <= 80
    assert "precaudit.apply(model, plan)" in done.stdout
    if CONTRACT.exists():
        checked = subprocess.run(
            [sys.executable, CONTRACT, tmp_path / "out" / "report.json"], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout


def test_options_that_only_precaudit_knows_are_told_of_where_the_script_gets_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text('parser.add_argument("--steps")\nclass Options:\n    no_verify: bool\noutput = 1\n')
    words = [str(script), "--steps", "5", "--out=runs", "--no-verify", "--lr", "1"]
    assert job_of(build_parser().parse_args(["profile", *words])).argv == tuple(words[1:])
    assert f"precaudit: --out after {script} went to the script" in capsys.readouterr().err
    job_of(build_parser().parse_args(["profile", "--out", "runs", str(script), "--lr", "1"]))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "beside", "told"),
    [
        ("from options import parse\n", 'parser.add_argument("--device")\n', False),
        ("device = 'cuda'\nexec(open('options.py').read())\n", "", False),
        ("device = 'cuda'\n", 'parser.add_argument("--device")\n', True),
        ("device = 'cuda'\n", "", True),
    ],
)
def test_options_that_another_file_or_the_scripts_variables_define_are_the_scripts(
    text: str, beside: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(text)
    (tmp_path / "options.py").write_text(beside)
    job_of(build_parser().parse_args(["profile", str(script), "--device=cpu"]))
    assert ("--device after" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("environment", "refused"),
    [({"RANK": "1", "WORLD_SIZE": "2"}, True), ({"RANK": "0", "WORLD_SIZE": "1"}, False), ({"WORLD_SIZE": "2"}, False)],
)
def test_one_of_several_processes_is_told_to_be_alone(
    environment: dict[str, str],
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["profile", "--out", str(tmp_path), str(tmp_path / "gone.py")]) == 2
    assert ("--nproc_per_node 1" in capsys.readouterr().err) is refused


def test_a_folder_is_a_script_where_python_would_run_it(tmp_path: Path) -> None:
    parse = build_parser().parse_args
    with pytest.raises(PrecauditError, match="a folder without __main__"):
        job_of(parse(["profile", str(tmp_path)]))
    for nothing in ("--", ""):
        with pytest.raises(PrecauditError, match="no script given"):
            job_of(parse(["profile", nothing]))
    (tmp_path / "__main__.py").touch()
    assert job_of(parse(["profile", str(tmp_path), "--lr", "1"])).argv == ("--lr", "1")


def test_a_notebook_is_no_script(tmp_path: Path) -> None:
    (tmp_path / "train.ipynb").write_text('{"cells": [{"execution_count": null}]}')
    with pytest.raises(PrecauditError, match=r"train\.ipynb is a notebook.*nbconvert") as raised:
        job_of(build_parser().parse_args(["profile", str(tmp_path / "train.ipynb")]))
    assert raised.value.exit_code == 2


def test_an_earlier_report_is_not_overwritten(tmp_path: Path, profile_here: Callable[..., Done]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    again = profile_here(SCRIPTS / "argparse_main.py")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert (tmp_path / "out" / "report.json").read_text() == "{}"


def test_an_earlier_report_is_named_as_such_where_nothing_was_measured(
    tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    done = profile_here(SCRIPTS / "bad" / "no_backward.py", "--force")
    assert done.returncode == 3
    assert "; out/report.json is an earlier profile's" in done.stderr
    assert (tmp_path / "out" / "report.json").read_text() == "{}"


UNMEASURED = ("syntax_error", "missing_argument", "reads_stdin", "needs_a_launcher")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("crash_step3", 4, "Traceback"),
        ("reads_stdin", 4, "EOFError"),
        ("no_backward", 3, "nothing to measure"),
        ("no_module", 3, "functional_call(model, weights, x)"),
        ("sys_exit_code", 4, "failed"),
        ("os_exit", 4, "exited with code 7"),
        ("killed", 4, "SIGKILL"),
        ("syntax_error", 4, "SyntaxError"),
        ("missing_argument", 4, "the following arguments are required: --data"),
        ("needs_a_launcher", 4, "KeyError: 'LOCAL_RANK'"),
        ("refuses_hooks", 2, "precaudit is at fault; please report it"),
    ],
)
def test_scripts_that_fail(
    script: str, code: int, words: str, tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    done = profile_here(SCRIPTS / "bad" / f"{script}.py", "--steps", "40")
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr
    assert "/precaudit/" not in done.stderr.replace(str(SCRIPTS), "")
    assert ("what was measured is in out" in done.stderr) is (code != 3 and script not in UNMEASURED)
    assert ("what the script said is in out/script.log" in done.stderr) is (script in UNMEASURED)
    assert ("torchrun" in done.stdout) is (script == "needs_a_launcher")
    if script == "crash_step3":
        assert report_in(tmp_path)["job"]["steps"] == 3
        assert report_in(tmp_path)["layers"]
        assert report_in(tmp_path)["tensor_cores"]["eligible_flops_share"] is None  # there is no plan


def test_a_script_that_ends_early_is_judged_on_its_steps(tmp_path: Path, profile_here: Callable[..., Done]) -> None:
    done = profile_here(SCRIPTS / "bad" / "ends_early.py", "--steps", "20", "--no-verify")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_in(tmp_path)
    assert report["job"]["steps"] == 5
    assert any("ended after 5" in note for note in report["job"]["notes"])


def test_a_script_that_float32_does_not_train(tmp_path: Path, profile_here: Callable[..., Done]) -> None:
    done = profile_here(SCRIPTS / "bad" / "nan_data.py", "--no-verify")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "REPAIR FLOAT32 FIRST" in done.stdout
    finding = report_in(tmp_path)["findings"][0]
    assert (finding["rule"], finding["location"]["line"]) == ("PA603", 14)
    assert "nan came with the data, as 1 of the 9,600 values that __getitem__ reads" in finding["message"]


@pytest.mark.parametrize("name", ["catches_everything", "swallow_exceptions"])
def test_a_script_that_catches_everything_is_stopped(
    name: str, tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    done = profile_here(SCRIPTS / "bad" / f"{name}.py", "--steps", "24")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_in(tmp_path)
    assert report["job"]["steps"] == 24
    assert report["verification"]["verdict"] == "screened"
    assert {len(trial["losses"]) for trial in report["verification"]["trials"]} == {24}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--formats", "float17"), "float17"),
        (("--target", "voodoo2"), "voodoo2"),
        (("--target", "v100", "--formats", "bf16"), "bfloat16"),
        (("--fail-on", "PA1:x:y"), "PA1"),
        (("--execution", "native"), "CUDA"),
        (("--steps", "0"), "--steps"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(
    options: tuple[str, ...], words: str, profile_here: Callable[..., Done]
) -> None:
    done = profile_here(SCRIPTS / "vae.py", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profile", "--lr", "0.1", "train.py"], ["profile takes no --lr:", "precaudit profile [options] SCRIPT --lr"]),
        (["check", "--plan", "plan.json", "--lr=3", "train.py"], ["check takes no --lr:", "[options] SCRIPT --lr\n"]),
        (["compare", "a", "b", "c"], ["compare takes no c: see precaudit compare --help\n"]),
        (["compare", "a", "b", "--failon=3"], ["compare takes no --failon (did you mean --fail-on?): see"]),
        (["profile", "--seed", "42", "train.py"], ["profile takes no --seed (did you mean --seeds?): see"]),
        (["check", "--plan", "plan.json", "--out", "x", "train.py"], ["check takes no --out (did you mean --output?)"]),
    ],
)
def test_an_argument_that_a_command_does_not_take_is_told_of_by_the_command(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("precaudit: ")
    assert all(each in said for each in words)


@pytest.mark.parametrize("verb", [["profile"], ["check", "--plan", "plan.json"]], ids=["profile", "check"])
@pytest.mark.parametrize("given", [["--config", "a.yaml", "--steps", "3"], ["data", "-o", "x"], ["--", "-v"], []])
def test_what_follows_a_module_s_name_is_the_module_s(verb: list[str], given: list[str]) -> None:
    job = job_of(build_parser().parse_args([*verb, "--steps", "7", "-m", "package.train", *given]))
    assert (job.kind, job.target, list(job.argv), job.steps) == ("module", "package.train", given, 7)


@pytest.mark.parametrize(("module", "reason"), [("no_such_module", "No module named"), ("json", "cannot be directly")])
def test_a_missing_module(module: str, reason: str, tmp_path: Path) -> None:
    with started(tmp_path, "profile", "-m", module) as process:
        said = process.communicate(timeout=PATIENCE)[1].splitlines()[-1]
    assert process.returncode == 2
    assert said.startswith("precaudit: ")
    assert reason in said
    assert "python -m" in said


def test_a_missing_script(tmp_path: Path, profile_here: Callable[..., Done]) -> None:
    done = profile_here(tmp_path / "nothing.py")
    assert done.returncode == 2
    assert "nothing.py" in done.stderr


def test_what_a_profile_took_counts_the_imports_that_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def profile_job(job: Job, settings: Settings, runner: ChildRunner, began: float) -> None:
        waited.append(time.perf_counter() - began)
        raise PrecauditError("enough")

    monkeypatch.setattr("precaudit.commands.profiling.import_torch", lambda: time.sleep(0.2))
    monkeypatch.setattr("precaudit.commands.profiling.handle_signals", lambda runner: None)
    monkeypatch.setattr("precaudit.commands.profiling.ChildRunner.start", lambda runner, job: None)
    monkeypatch.setattr("precaudit.profiling.engine.profile_job", profile_job)
    assert main(["profile", "--out", str(tmp_path / "out"), str(SCRIPTS / "vae.py")]) == 2
    assert waited[0] >= 0.2


@pytest.mark.parametrize("asked", [[], ["--out", "reports/train"]])
def test_scripts_of_one_name_are_told_of_folders_of_their_own(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """a/train.py and b/train.py both write reports/train, where --force alone would take one for the other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports" / "train").mkdir(parents=True)
    for path in (tmp_path / "train.py", tmp_path / "reports" / "train" / "report.json"):
        path.write_text("")
    assert main(["profile", *asked, "train.py"]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "report.json already exists; pass --force to overwrite" in told
    assert ("another --out where another script of this name" in told) == (not asked)


@pytest.mark.parametrize("places", [("room", "home"), ("file", "home"), ("file", "file")])
def test_a_report_that_its_folder_has_no_room_for_is_kept_elsewhere(
    places: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder should be refuses every write, as a full disk does."""
    (tmp_path / "file").write_text("")
    for name in ("room", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / places[0]))
    monkeypatch.setenv("HOME", str(tmp_path / places[1]))
    arguments = build_parser().parse_args(["profile", "train.py"])
    outcome = Outcome(Report(), ExitCode.SCRIPT_FAILED, "the script failed")
    assert finish(outcome, arguments, tmp_path / "file" / "out") == ExitCode.SCRIPT_FAILED
    told = capsys.readouterr().err
    kept = list(tmp_path.glob("*/precaudit-*/report.json"))
    assert [path.parents[1].name for path in kept] == [name for name in places if name != "file"][:1]
    assert [load_report(path) for path in kept] == [outcome.report] * len(kept)
    assert all(f"kept in {path}; for the others: precaudit report {path} -o " in told for path in kept)
    assert ("kept nowhere else either" in told) == (not kept)
    assert told.endswith("precaudit: the script failed\n"), "nothing is said to be in the folder"


PREPARING = """
import time
print("preparing", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("delay", [0, 0.4, 0.8])
@pytest.mark.parametrize("awaited", ["", "preparing"])
def test_an_interrupt_before_the_first_step_is_no_crash_and_keeps_an_earlier_report(
    tmp_path: Path, awaited: str, delay: float
) -> None:
    """A terminal sends Ctrl-C to every process, the one that imports torch for the runs among them. Interrupted in the
    midst of their imports, numpy, scipy and torch end in recursion, an abort or a hang."""
    report, log = tmp_path / "out" / "report.json", tmp_path / "out" / "script.log"
    report.parent.mkdir()
    report.write_text("an earlier one")
    (tmp_path / "train.py").write_text(PREPARING)
    with started(tmp_path, "profile", "--force", "--out", "out", "train.py") as process:
        wait_for(process, lambda: log.exists() and awaited in log.read_text())
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert report.read_text() == "an earlier one"


def test_positions_made_in_a_low_dtype_are_found_where_they_are_made(
    tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    """In float32 nothing shows it: the dtype that `arange` takes is the input's."""
    done = profile_here(SCRIPTS / "rotary_in_dtype.py", "--steps", "20", "--no-verify", "--formats", "bf16")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    low = {fqn for fqn, name in plan["modules"].items() if name == "bfloat16"}
    assert low == {"embedding", "query", "key", "value", "out", ""}, done.stdout
    assert plan["modules"]["rotary"] == "float32"
    assert "arange makes 400 values up to 400 in bfloat16" in plan["because"]["rotary"]


def test_an_average_that_stands_still_under_the_plan_is_repaired(
    tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    """The loss shows nothing of it in so few steps."""
    done = profile_here(SCRIPTS / "average_in_dtype.py", "--steps", "40", "--formats", "bf16")
    report = report_in(tmp_path)
    low = {fqn for fqn, name in report["plan"]["modules"].items() if name == "bfloat16"}
    assert low == {"0", "2"}, done.stdout
    assert done.returncode == 0, done.stdout
    (repair,) = report["verification"]["repairs"]
    assert repair["why"] == "its buffer mean moves less than half as far as in float32"


CANCELLING = """
import torch
from torch import nn

class Distance(nn.Module):
    def forward(self, x, centres):
        return (x * x).sum(-1, keepdim=True) + (centres * centres).sum(-1) - 2 * x @ centres.T

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 8)
        self.centres = nn.Parameter(30 + torch.randn(8, 8))
        self.distance = Distance()
        nn.init.constant_(self.body.bias, 30.0)

    def forward(self, x):
        return -self.distance(self.body(x), self.centres)

model, means = Net(), torch.randn(8, 16)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(100):
    y = torch.randint(8, (64,))
    loss = nn.functional.cross_entropy(model(means[y] + torch.randn(64, 16) / 2), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_plan_of_tf32_alone_spares_the_module_that_cannot_have_it(
    tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    script = tmp_path / "cancelling.py"
    script.write_text(CANCELLING)
    done = profile_here(script, "--steps", "60", "--no-verify", "--formats", "tf32")
    report = report_in(tmp_path)
    wide = {fqn for fqn, name in report["plan"]["modules"].items() if name == "float32"}
    assert wide == {"distance"}, done.stdout
    assert [f["rule"] for f in report["findings"] if f["fqn"] == "distance"] == ["PA201"]


def test_a_file_that_cannot_be_written_hides_no_failure_of_the_script(
    tmp_path: Path, profile_here: Callable[..., Done]
) -> None:
    done = profile_here(SCRIPTS / "bad" / "syntax_error.py", "-o", "no/such/folder.svg")
    assert done.returncode == 4, done.stderr
    assert "SyntaxError" in done.stderr
    assert "nothing to draw" in done.stderr
