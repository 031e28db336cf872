"""Runs written by hand, for the tests beside."""

import numpy as np

from precaudit.running.job import EndState, RunResult, ScriptError


def falling(steps=40, start=3.0, end=1.0, noise=0.01, seed=0):
    """A loss curve that learns and settles."""
    rng = np.random.default_rng(seed)
    curve = end + (start - end) * np.exp(-np.arange(steps) / 3)
    return tuple(float(x) for x in curve * (1 + noise * rng.standard_normal(steps)))


def run(losses, label="reference", seed=0, **fields):
    """A run that took a step for each loss."""
    return RunResult(label, seed, fields.pop("status", "stopped"), len(losses), len(losses), losses=losses, **fields)


def ended(**fields):
    return EndState(**fields)


def broken(losses, message="boom"):
    return run(losses, "candidate-1", status="failed", error=ScriptError("ValueError", message, message))
