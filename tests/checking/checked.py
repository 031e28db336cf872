"""Checks in this process, and the small model that most tests check."""

from __future__ import annotations

import os

import torch
from torch import nn

from precaudit.checking.check import check_job
from precaudit.checking.records import CheckSettings
from precaudit.model import Plan
from precaudit.running.job import Job
from precaudit.running.model_file import infer, train
from precaudit.running.worker import run


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.hidden = nn.Linear(8, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.hidden(x))))


TYPES = {"hidden": "Linear", "norm": "LayerNorm", "out": "Linear", "": "Net"}


def plan(name="bfloat16", **changes):
    return Plan(**{"default": name, "modules": dict.fromkeys(TYPES, name), "types": TYPES} | changes)


def batches(scale=1.0, count=8):
    generator = torch.Generator().manual_seed(3)
    return [scale * torch.randn(16, 8, generator=generator) for _ in range(count)]


def check(wanted, build_model=Net, data=None, loss=None, **settings):
    """What `precaudit check` reports of a model file with these functions."""
    functions = {"build_model": build_model, "batches": lambda: data or batches()}
    if loss:
        functions["loss"] = loss
    return _check("inference", lambda spec: infer(functions, "cpu", spec.job.steps), wanted, settings)


def check_training(wanted, code, **settings):
    """What it reports of a script."""
    return _check("script", lambda spec: code(), wanted, settings)


def check_trained(wanted, loss, data):
    """What it reports of a script that trains `Net`."""
    return check_training(wanted, lambda: train({"build_model": Net, "batches": lambda: data, "loss": loss}, "cpu"))


def _check(kind, code, wanted, settings):
    chosen = CheckSettings(**settings)
    job = Job(kind, "model.py", (), os.getcwd(), chosen.steps)
    state = torch.get_rng_state()
    try:
        return check_job(job, wanted, chosen, lambda spec: run(spec, lambda: code(spec)))
    finally:
        torch.set_rng_state(state)


def rules(report):
    return {finding.rule for finding in report.findings}


def answer(report, question):
    return next(answer for answer in report.answers if answer.question == question)
