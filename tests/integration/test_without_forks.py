"""A system without forks, such as Windows: what needs none works, and what does says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BASE = Path(__file__).parents[2] / "reports" / "digits_cnn" / "report.json"

WITHOUT = """
import multiprocessing, os, signal, sys
import torch, scipy.stats, pandas, numba  # these ask for what belongs to their own systems

for name in ("SIGKILL", "SIGHUP"):
    delattr(signal, name)
for name in ("fork", "sched_getaffinity"):
    delattr(os, name)
sys.modules.update(fcntl=None, resource=None)
sys.platform = "win32"
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""

COMMANDS = """
from precaudit.__main__ import main

base = sys.argv[1]
print([main(command) for command in (["compare", base, base], ["report", base, "-o", "r.md"], ["devices"])])
print([main([*verb, "x.py"]) for verb in (["profile"], ["check", "--plan", "plan.json"])])
"""

LIBRARY = """
import precaudit
from torch import nn

report = precaudit.profile(
    lambda: nn.Linear(4, 1), lambda: [torch.randn(8, 4)] * 20, lambda model, x: (model(x) - 1).square().mean(),
    build_optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.05), steps=20, quick=True,
)
model = nn.Linear(4, 1)
with precaudit.apply(model, precaudit.Plan("bfloat16", {"": "bfloat16"})), precaudit.audit(model) as audit:
    model(torch.ones(2, 4)).sum().backward()
print(report.verification.verdict, [layer.type for layer in audit.report().layers])
"""


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + program, str(BASE)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_commands_that_run_no_script_work_and_the_others_say_what_to_do(tmp_path: Path) -> None:
    done = run(COMMANDS, tmp_path)
    assert done.stdout.splitlines()[-2:] == ["[0, 0, 0]", "[2, 2]"], done.stderr
    assert done.stderr.count("on Windows: WSL") == 2


def test_python_profiles_audits_and_applies(tmp_path: Path) -> None:
    done = run(LIBRARY, tmp_path)
    assert done.stdout.splitlines()[-1] == "screened ['Linear']", done.stderr
