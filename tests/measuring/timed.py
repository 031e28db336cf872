"""Small trainings for timed runs, and the run itself."""

from __future__ import annotations

import os

import torch
from torch import nn

from precaudit.measuring.program import Program
from precaudit.measuring.session import timed_run
from precaudit.running.job import Job, RunResult, RunSpec

QUICK = {"devices": ("cpu",), "window": 1e-4, "rounds": 3, "fewest": 3, "energy_window": 0.0}


def training(steps: int = 10**6, seen: list[torch.dtype] | None = None, loss=lambda y: y.square().mean()):
    """A script: a linear layer, a ReLU and a linear layer; `seen` takes the dtypes that come out of the first."""

    def code() -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        if seen is not None:
            model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(torch.randn(16, 8))).backward()
            optimizer.step()

    return code


def timed(code, *arms, **options) -> RunResult:
    job = Job("script", "train.py", (), os.getcwd(), 60)
    return timed_run(RunSpec(job, "timing"), code, program=Program(tuple(arms), **{**QUICK, **options}))
