"""The formats in which values alias, and the gradient hardly shows it."""

import math
import os

import pytest
import torch
from in_process import InProcess
from torch import nn

from precaudit.planning.budget import GradientError
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import _as_tried, _without_harm, run_audit
from precaudit.running.job import Job


def error(label, rho=0.001, snr=1e4, bias=0.01):
    return GradientError(label, rho, snr, bias, 8)


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ({}, {"bfloat16", "float16"}),
        ({"rho": 1.0, "snr": 2.0}, {"float16"}),
        ({"rho": math.inf, "snr": 0.0}, {"float16"}),
        ({"rho": math.nan, "snr": 1e4}, {"bfloat16", "float16"}),
    ],
)
def test_harmless_formats_are_never_over_budget_or_lost(late, expected):
    seen = [error("bfloat16@init"), error("float16@init"), error("bfloat16@late", **late)]
    assert _without_harm(seen) == expected
    assert _without_harm([]) == set()


def test_a_ban_in_a_harmless_format_is_a_warning():
    ban = Ban("PA101", "attention", "sub", "float16", "error", "sub reaches 8e+04", "", "other")
    assert [_as_tried(ban, harmless).severity for harmless in ({"float16"}, {"bfloat16"})] == ["warning", "error"]


class Near(nn.Module):
    """The difference of two values close together, which bfloat16 loses, is watched or used."""

    def __init__(self, used):
        super().__init__()
        self.body, self.head, self.used = nn.Linear(16, 32), nn.Linear(32, 4), used

    def forward(self, x):
        hidden = self.body(x).tanh()
        gap = hidden * 1.003 - hidden
        if not self.used and float(gap.detach().norm()) == 0:
            raise RuntimeError("it stands still")
        return self.head(hidden + 300 * gap if self.used else hidden)


@pytest.mark.parametrize(("used", "severity"), [(False, "warning"), (True, "error")])
def test_an_operation_that_loses_its_result_is_an_error_only_if_the_gradient_shows_it(used, severity, tmp_path):
    def code():
        torch.manual_seed(0)
        model = Near(used)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        while True:
            x = torch.randn(64, 16)
            optimizer.zero_grad()
            (model(x) - x[:, :4].tanh()).square().mean().backward()
            optimizer.step()

    job = Job("script", "train.py", (), os.getcwd(), 16)
    audit = run_audit(job, ("bfloat16", "float32"), "emulated", InProcess(code), str(tmp_path))
    assert {(ban.rule, ban.op, ban.severity) for ban in audit.bans} == {("PA106", "sub", severity)}


class Numbers(nn.Module):
    """A fixed transform of large integers: samples of audio are filtered, hours of a year have a phase."""

    def __init__(self, phase):
        super().__init__()
        self.head, self.phase = nn.Linear(16, 1), phase
        self.register_buffer("filters", torch.randn(16, 16) / 4)

    def forward(self, x):
        filtered = x @ self.filters
        return self.head(filtered.sin() if self.phase else filtered / 1000)


@pytest.mark.parametrize(("phase", "severity"), [(False, "warning"), (True, "error")])
def test_large_integers_are_an_error_only_if_the_gradient_shows_it(phase, severity, tmp_path):
    def code():
        torch.manual_seed(0)
        model = Numbers(phase)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        while True:
            x = torch.randint(-4000, 4000, (64, 16)).float()
            optimizer.zero_grad()
            (model(x) - torch.randn(64, 1)).square().mean().backward()
            optimizer.step()

    job = Job("script", "train.py", (), os.getcwd(), 16)
    audit = run_audit(job, ("bfloat16", "float32"), "emulated", InProcess(code), str(tmp_path))
    assert [(ban.op, ban.severity) for ban in audit.bans if ban.rule == "PA105"] == [("matmul", severity)]
