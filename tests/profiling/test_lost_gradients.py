"""Gradients of single modules that no loss shows: a small term that is added to a large one."""

import os

import torch
from in_process import InProcess
from torch import nn

from precaudit.hardware.peaks import get_gpu
from precaudit.planning.planner import build_plan
from precaudit.profiling.audit import run_audit
from precaudit.profiling.engine import _choices, _with_lost
from precaudit.profiling.findings.all import _of_errors
from precaudit.running.job import Job

FORMATS = ("bfloat16", "float32")


class Certain(nn.Module):
    """Its second answer is one, and a little more that bfloat16 can't tell from it."""

    def __init__(self, little):
        super().__init__()
        self.body, self.head, self.doubt = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 1)
        self.little = little

    def forward(self, x):
        hidden = self.body(x).relu()
        return self.head(hidden), 1 + self.little * self.doubt(hidden.detach()).sigmoid()


def audited(little, folder):
    def code():
        torch.manual_seed(0)
        model, target = Certain(little), torch.randn(16, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        while True:
            x = torch.randn(64, 16)
            y = (x @ target).tanh()
            guess, doubt = model(x)
            small = ((doubt - 1) / little - y[:, :1].square()).square().mean()
            optimizer.zero_grad()
            ((guess - y).square().mean() + 1e-3 * small).backward()
            optimizer.step()

    runner = InProcess(code)
    audit = run_audit(Job("script", "train.py", (), os.getcwd(), 16), FORMATS, "emulated", runner, str(folder))
    return _with_lost(audit, FORMATS, runner)


def test_a_module_with_lost_gradients_is_found_and_its_cause_is_kept_wide(tmp_path):
    audit = audited(1e-4, tmp_path)
    (lost,) = audit.lost
    assert (lost.fqn, lost.causes) == ("doubt", ("",))
    assert lost.error > 1
    assert all(error.within_budget for error in audit.errors)
    choices = _choices(audit, FORMATS, get_gpu("h100"))
    assert [(repair.fqn, repair.target) for repair in choices.repairs] == [("", "float32")]
    (found,) = _of_errors(audit, build_plan(audit.trace, choices))
    assert (found.rule, found.severity, found.fqn) == ("PA201", "warning", "")
    assert found.message.startswith("doubt: in bfloat16 its gradients are off by")


def test_no_finding_without_lost_gradients(tmp_path):
    assert audited(1.0, tmp_path).lost == ()
