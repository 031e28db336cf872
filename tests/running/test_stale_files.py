"""A run knows which of the files that it read an earlier run of the job had written."""

import pytest

from precaudit.errors import PrecauditError
from precaudit.profiling.audit import require_same_start
from precaudit.running.children import ChildRunner
from precaudit.running.job import Job, RunResult, RunSpec

SCRIPT = """
import os

import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scale = float(open("scale.txt").read())
if os.path.exists("prepared.pt"):
    model.load_state_dict(torch.load("prepared.pt"))
torch.save({"weight": torch.ones(1, 4), "bias": torch.zeros(1)}, "prepared.pt")
torch.load("prepared.pt")
for step in range(4):
    optimizer.zero_grad()
    (model(torch.ones(8, 4)) * scale - 1).square().mean().backward()
    optimizer.step()
    torch.save(model.state_dict(), "checkpoint.pt")
    torch.load("checkpoint.pt")
"""


def test_files_of_earlier_runs_are_recognized(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "scale.txt").write_text("2.0")
    runner = ChildRunner(tmp_path / "script.log")
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 3)
    first, second = runner(RunSpec(job, "reference", audited=frozenset({0}))), runner(RunSpec(job, "replay"))
    assert (first.status, first.stale_files) == ("stopped", ())
    assert second.stale_files == (str(tmp_path / "prepared.pt"),)
    with pytest.raises(PrecauditError, match=r"prepared\.pt"):
        require_same_start(first, second)


def run_of(losses, status="stopped", stale_files=("cache.pt",)):
    return RunResult("replay", 0, status, len(losses), losses=losses, stale_files=stale_files)


@pytest.mark.parametrize(
    "run",
    [
        run_of((1.0, 0.5)),
        run_of((0.5, 0.2), stale_files=()),
        run_of((), status="interrupted"),
        run_of((float("nan"),)),
    ],
)
def test_files_of_earlier_runs_are_ignored_if_runs_start_equal(run):
    require_same_start(run_of((1.0, 0.5), stale_files=()), run)


@pytest.mark.parametrize("losses", [(), (0.9, 0.8)])
def test_runs_with_different_starts_are_refused(losses):
    with pytest.raises(PrecauditError, match=r"cache\.pt"):
        require_same_start(run_of((1.0, 0.5), stale_files=()), run_of(losses, status="ended"))
