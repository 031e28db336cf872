"""Runs of a script under the watch of its own low precision."""

import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def seen(code, kind, steps=30, **fields):
    fields = fields or {"precision": "own-casts"}
    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), steps), "x", **fields), code)
    assert result.error is None
    return result.own_precision.entries(kind)


def train(after_step=lambda model: None, before_step=lambda model: None, lr=0.05, features=lambda x: x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(100):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        F.mse_loss(model(features(x)), x.sum(1, keepdim=True)).backward()
        before_step(model)
        optimizer.step()
        after_step(model)


class Dispatched(TorchDispatchMode):
    """The operations that torch runs, whoever calls them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))
