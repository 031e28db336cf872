"""Children of a program: it needs no main guard, and none of it runs again in them."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "vae.py"
PROGRAM = """
import sys
from pathlib import Path

from precaudit.running.children import ChildRunner
from precaudit.running.job import Job, RunSpec

print("the program starts")
runner = ChildRunner(Path("script.log"))
for result in runner.many([RunSpec(Job("script", sys.argv[1], (), ".", 2), "reference", seed) for seed in (0, 1)]):
    print(result.status, result.steps)
"""


def test_a_program_without_a_main_guard_is_run_once(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", str(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["the program starts", "stopped 2", "stopped 2"], done.stderr
    assert "the program starts" not in (tmp_path / "script.log").read_text()


def test_the_server_is_there_before_the_first_run(tmp_path):
    program = """
import sys
from multiprocessing import forkserver
from pathlib import Path

from precaudit.running.children import ChildRunner
from precaudit.running.job import Job

ChildRunner(Path("script.log")).start(Job("script", sys.argv[1], (), ".", 2))
print("torch" in sys.modules, forkserver._forkserver._forkserver_pid is not None)
"""
    command = [sys.executable, "-c", program, str(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True"], done.stderr


BAD = SCRIPT.parent / "bad"


def in_a_program(folder: Path, body: str, *arguments: object) -> str:
    """What a program prints that has a runner, in a process of its own: a server starts once in a process."""
    program = f"""
import sys, threading, time
from pathlib import Path

from precaudit.running import children
from precaudit.running.job import Job, RunSpec

runner = children.ChildRunner(Path("script.log"))
spec = RunSpec(Job("script", sys.argv[1], (), ".", 1000), "reference", 0)
{body}
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_to_its_script_a_child_is_the_main_process(tmp_path):
    said = in_a_program(tmp_path, "r = runner(spec); print(r.status, r.steps, r.error)", BAD / "unguarded_workers.py")
    log = (tmp_path / "script.log").read_text()
    assert said == "ended 8 None\n", log
    assert "done\nthe exit handler ran" in log
    assert list(tmp_path.glob("left-over-*")) == []


def test_a_script_that_ignores_an_interrupt_is_ended(tmp_path):
    (tmp_path / "deaf.py").write_text(
        "import signal, time, torch\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "model = torch.nn.Linear(4, 4)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "while True:\n"
        "    model(torch.ones(1, 4)).sum().backward()\n"
        "    optimizer.step()\n"
        "    time.sleep(0.05)\n"
    )
    body = """
children._GRACE_SECONDS = 0.5
def interrupt():
    while b"reference" not in Path("script.log").read_bytes():
        time.sleep(0.1)
    time.sleep(2)
    runner.interrupt()
Path("script.log").touch()
threading.Thread(target=interrupt).start()
result = runner(spec)
print(result.status, result.steps > 0, runner(spec).status)
"""
    assert in_a_program(tmp_path, body, "deaf.py") == "interrupted True interrupted\n"
