"""Runs of a small script in this process."""

import os

import torch
from torch import nn

from precaudit.model import Plan
from precaudit.running.job import Job, RunSpec

JOB = Job("script", "train.py", (), os.getcwd(), 6)
BRAIN = Plan("bfloat16", {"": "bfloat16", "0": "bfloat16", "1": "bfloat16", "2": "bfloat16"})


def spec(**fields):
    return RunSpec(JOB, fields.pop("label", "reference"), **fields)


def train(steps=100, before_step=lambda step: None, forward=lambda model, x: model(x)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        before_step(step)
        optimizer.zero_grad()
        forward(model, torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def training(make, loss, lr=0.0):
    """A script that trains what `make` returns by SGD until it is stopped."""

    def code():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        while True:
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

    return code


def plainly():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
