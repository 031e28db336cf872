"""Children of a program: it needs no main guard, and none of it runs again in them."""

import operator
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest

from precaudit.running import child_process
from precaudit.running.children import ChildRunner, _memory_was_taken
from precaudit.running.job import EndState, Job, RunResult, RunSpec, ScriptError

BAD = Path(__file__).parents[1] / "scripts" / "bad"
PROGRAM = """
import threading, time
from multiprocessing import forkserver
from pathlib import Path

from precaudit.running import children
from precaudit.running.job import Job, RunSpec

print("the program starts")
log = Path("script.log")
runner = children.ChildRunner(log)

def spec(script):
    return RunSpec(Job("script", script, (), ".", 1000), script, 0)

def end(process, _end=children._end):
    _end(process)
    print("ended", process.exitcode)

children._end = end
runner.start(spec("workers.py").job)
print("server", forkserver._forkserver._forkserver_pid is not None)
found = runner(spec("workers.py"))
print("workers", found.status, found.steps, found.error)

def interrupt():
    while b"deaf.py" not in log.read_bytes():
        time.sleep(0.1)
    time.sleep(1)
    runner.interrupt()

children._GRACE_SECONDS = 0.5
threading.Thread(target=interrupt).start()
found = runner(spec("deaf.py"))
print("deaf", found.status, found.steps > 0, runner(spec("workers.py")).status)
"""
DEAF = """
import signal, time, torch
signal.signal(signal.SIGINT, signal.SIG_IGN)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a program prints that has a runner, its script's log, and what the scripts left behind."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "workers.py").write_text((BAD / "unguarded_workers.py").read_text())
    (folder / "deaf.py").write_text(DEAF)
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), (folder / "script.log").read_text(), list(folder.glob("left-over-*"))


def test_a_program_without_a_main_guard_is_run_once(said):
    lines, log, _ = said
    assert lines.count("the program starts") == 1
    assert "the program starts" not in log


def test_to_its_script_a_child_is_the_main_process(said):
    lines, log, left = said
    assert lines[1:4] == ["server True", "ended 0", "workers ended 8 None"], log
    assert "done\nthe exit handler ran" in log
    assert left == []


def test_a_script_that_ignores_an_interrupt_is_ended(said):
    lines, _, _ = said
    assert lines[5] == "deaf interrupted True interrupted"


LISTENING = """
import time, torch
from torch import distributed
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:PORT", rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    time.sleep(0.05)
"""


def test_runs_of_a_script_that_listens_at_a_port_take_turns(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "train.py").write_text(LISTENING.replace("PORT", str(port)))
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 8)
    runs = ChildRunner(tmp_path / "script.log", parallel=2).many([RunSpec(job, "reference")] * 3)
    assert [(run.status, run.steps) for run in runs] == [("stopped", 8)] * 3, runs[0].error


LOGGING = """
import os, pathlib, torch
pathlib.Path("prepared").touch()
pathlib.Path(f"events-{os.getpid()}").touch()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
"""


def test_of_what_runs_create_before_training_only_the_first_ones_stays(tmp_path):
    (tmp_path / "train.py").write_text(LOGGING)
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 4)
    runner = ChildRunner(tmp_path / "script.log")
    runner(RunSpec(job, "reference", audited=frozenset({0})))
    first = sorted(path.name for path in tmp_path.iterdir())
    assert [name.partition("-")[0] for name in first] == ["events", "prepared", "script.log", "train.py"]
    assert runner(RunSpec(job, "reference", audited=frozenset({0}), neutralize=True)).finished
    assert all(run.finished for run in runner.many([RunSpec(job, "candidate-1", seed) for seed in (0, 1)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == first


TALKING = """
import os, sys, time, torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(20):
    print(f"{os.getpid()} says", flush=True)
    time.sleep(0.02)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
sys.exit(os.getpid())
"""


def test_logs_of_single_runs_that_a_killed_profile_left_are_removed(tmp_path):
    for name in ("script.log.1", "script.log.2", "script.log.old"):
        (tmp_path / name).write_text("said")
    ChildRunner(tmp_path / "script.log")
    assert [path.name for path in tmp_path.iterdir()] == ["script.log.old"]


def test_the_log_has_what_each_run_said_in_one_piece(tmp_path):
    (tmp_path / "train.py").write_text(TALKING)
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 30)
    (tmp_path / "script.log.1").write_text("of a killed profile\n")
    runs = ChildRunner(tmp_path / "script.log", parallel=2).many([RunSpec(job, "reference", seed) for seed in (0, 1)])
    _, *logs = (tmp_path / "script.log").read_text().split("=====\n")
    said = [set(lines.splitlines()[:20]) for lines in logs]
    assert all(len(lines) == 1 for lines in said), logs
    assert said[0] != said[1]
    assert all(len(set(run.error.traceback.splitlines()[:19])) == 1 for run in runs), runs
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "script.log"}


LARGE = """
import os, pathlib, time, torch
mine = pathlib.Path(f"running-{os.getpid()}")
mine.touch()
time.sleep(0.5)
if len(list(pathlib.Path().glob("running-*"))) > 1:
    time.sleep(0.5)
    mine.unlink()
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
try:
    while True:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
finally:
    mine.unlink()
"""


def test_runs_that_do_not_fit_beside_each_other_take_turns(tmp_path):
    (tmp_path / "train.py").write_text(LARGE)
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 8)
    runs = ChildRunner(tmp_path / "script.log", parallel=2).many([RunSpec(job, "reference")] * 2)
    assert [(run.status, run.steps) for run in runs] == [("stopped", 8)] * 2, runs[0].error


SEEING = """
import os, pathlib, time, torch
pathlib.Path(f"gpus-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [(("4", "6", "7"), ["4,6,7", "6,7,4"]), (("4",), ["unset", "unset"]), ((), ["unset", "unset"])],
)
def test_runs_beside_each_other_begin_with_different_gpus(gpus, seen, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "train.py").write_text(SEEING)
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 8)
    runner = ChildRunner(tmp_path / "script.log", parallel=2, gpus=gpus)
    spec = RunSpec(job, "reference", audited=frozenset({0}))
    runner.many([spec] * 2)
    assert sorted(path.read_text() for path in tmp_path.glob("gpus-*")) == seen
    runner(spec)
    assert sorted(path.read_text() for path in tmp_path.glob("gpus-*")) == sorted([*seen, seen[0]])


def test_a_script_that_puts_another_program_in_its_place_is_told(tmp_path):
    (tmp_path / "train.py").write_text('import os; os.execv("/bin/true", ["true"])')
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 8)
    run = ChildRunner(tmp_path / "script.log")(RunSpec(job, "reference"))
    assert "(exit code 0) after step 0, the last one that it told of; it may have put another" in run.error.message


def test_a_log_whose_folder_the_script_removed_is_begun_again(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for log, name in ((tmp_path / "gone" / "script.log", "script.log"), (tmp_path / "file" / "script.log", "null")):
        with child_process._opened(log) as stream:
            assert stream.write(b"said") == 4
            assert Path(stream.name).name == name
    assert (tmp_path / "gone" / "script.log").read_bytes() == b"said"


def test_a_failure_of_precaudits_own_is_not_called_the_script_s(tmp_path):
    (tmp_path / "train.py").write_text(DEAF)
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 8)
    run = ChildRunner(tmp_path / "script.log")(RunSpec(job, "reference", observer=operator.add))
    assert run.status == "killed"
    assert run.error.message.startswith("precaudit itself failed, not the script (TypeError: ")
    assert "Traceback" in run.error.traceback


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        ("AcceleratorError", "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        ("RuntimeError", "FIND was unable to find an engine to execute this computation"),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        ("MemoryError", ""),
    ],
)
def test_every_way_to_say_that_memory_is_gone(kind, message):
    failed = RunResult("reference", 0, "failed", error=ScriptError(kind, message, message))
    assert _memory_was_taken(failed)
    assert not _memory_was_taken(replace(failed, error=ScriptError("RuntimeError", "shape mismatch", "")))
    assert _memory_was_taken(RunResult("reference", 0, "ended", end_state=EndState(refused={"net": failed.error})))


def test_what_compiles_the_kernels_is_over_before_runs_are_forked():
    """A compiler's hundred megabytes would be part of every run's memory, on a first profile alone."""
    program = """
import os
from precaudit import histograms
histograms.observe = lambda values: os.write(1, b"here " if os.getpid() == server else b"apart ")
server = os.getpid()
import precaudit.running.preload
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["apart", "here"]


def test_a_server_that_is_killed_is_replaced(tmp_path):
    script = tmp_path / "empty.py"
    script.touch()
    spec = RunSpec(Job("script", str(script), (), str(tmp_path), 2), "reference")
    runner = ChildRunner(tmp_path / "script.log")
    runner.start(spec.job)
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)  # it takes no request any more
    threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
    assert runner(spec).status == "ended"
    assert forkserver._forkserver._forkserver_pid != server


BROKEN_LIBRARY = """
from pathlib import Path

from precaudit.running.children import ChildRunner
from precaudit.running.job import Job, RunSpec

for script in ("without.py", "needing.py"):
    found = ChildRunner(Path("script.log"))(RunSpec(Job("script", script, (), ".", 1), "reference"))
    print(found.status, found.error and found.error.message)
"""


def test_a_library_that_breaks_at_its_import_breaks_no_run_that_does_without(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "torchvision.py").write_text("raise RuntimeError('operator does not exist')")
    (tmp_path / "without.py").write_text("try:\n    import torchvision\nexcept RuntimeError:\n    pass\n")
    (tmp_path / "needing.py").write_text("import torchvision\n")
    (tmp_path / "program.py").write_text(BROKEN_LIBRARY)
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(["lib", *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["ended None", "failed operator does not exist"], done.stderr
