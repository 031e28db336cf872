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
