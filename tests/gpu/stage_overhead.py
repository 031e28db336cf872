"""What auditing costs a GPT of more than 100 million parameters: whole steps, plain and audited taking turns.

Arms take turns by blocks of 16 steps, the audit entered once a block, so that a sampled arm records one step of a
block as it does in anybody's own loop. Every step is timed with the device at rest before and after.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from stage import Setting, main, wait
from torch.nn import functional as F

import precaudit
from precaudit.tracing.parameters import ParameterTracker
from precaudit.tracing.tracer import Tracer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bench_tracing import GPT, LENGTH

BLOCK = 16
WITHOUT = {
    "weights, their copies, and so the updates": (ParameterTracker, "observe_weights", None),
    "updates and optimizer states": (ParameterTracker, "observe_step", None),
    "weight gradients": (ParameterTracker, "_observe_gradient", None),
    "operations": (Tracer, "record", None),
    "gradients of operations": (Tracer, "_observer", lambda gradient: None),
}
"""What is left out, by the method that measures it and what that returns instead."""


def measure(setting: Setting) -> dict[str, Any]:
    arms = {"plain": Arm(setting, None), "every step": Arm(setting, 1), "default, 1 in 16": Arm(setting, 16)}
    for _ in range(2):
        warm = {name: arm.block(setting.size(BLOCK, 2)) for name, arm in arms.items()}
    rounds = [{n: arm.block(len(warm[n])) for n, arm in arms.items()} for _ in range(setting.size(4, 2))]
    taken = {name: [block[name] for block in rounds] for name in arms}
    plain = [second for block in taken["plain"] for second in block]
    sampled = taken["default, 1 in 16"]
    every = arms["every step"]
    return {
        "parameters": sum(p.numel() for p in every.model.parameters()),
        "plain_step_seconds": statistics.median(plain),
        "rounds": len(rounds),
        # The mean over whole blocks: a sampled arm is cheap in most steps and dear in one of sixteen.
        "ratio": {
            name: statistics.median(sum(a) / sum(b) for a, b in zip(blocks, taken["plain"], strict=True))
            for name, blocks in taken.items()
            if name != "plain"
        },
        "sampled": {
            "recorded_step": statistics.median(block[0] for block in sampled) / statistics.median(plain),
            "other_steps": statistics.median(s for block in sampled for s in block[1:]) / statistics.median(plain),
        },
        "quartiles_of_plain": statistics.quantiles(plain, n=4),
        "saved_without": saved(every),
        "launches_per_step": {name: arm.launches() for name, arm in arms.items() if "16" not in name},
    }


def saved(arm: Arm) -> dict[str, float]:
    """Seconds that a step of the arm is shorter without one of the things that are measured.

    They overlap with each other and with the device's work, so they don't add up to the whole.
    """
    count = arm.setting.size(8, 2)
    whole = statistics.median(arm.block(count)[1:])
    seconds = {}
    for name, (owner, method, result) in WITHOUT.items():
        with mock.patch.object(owner, method, lambda *_, result=result, **__: result):
            seconds[name] = whole - statistics.median(arm.block(count)[1:])
    return seconds


class Arm:
    """A model of its own; the audit is on during this arm's steps only, for its hooks are global."""

    def __init__(self, setting: Setting, every: int | None) -> None:
        torch.manual_seed(0)
        self.setting, self.vocabulary = setting, setting.size(50304, 64)
        width, heads = setting.size(768, 32), setting.size(12, 2)
        self.model = GPT(setting.size(12, 1), width, heads, self.vocabulary).to(setting.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self._audit: Callable[[], Any] = nullcontext
        if every:
            audit = precaudit.audit(self.model, optimizer=self.optimizer, every=every)
            self._audit = lambda: audit

    def block(self, steps: int) -> list[float]:
        """Seconds of each step; a sampled audit goes on counting, so that blocks are of as many steps as it skips."""
        with self._audit():
            return [self.step() for _ in range(steps)]

    def step(self) -> float:
        length = self.setting.size(LENGTH, 8)
        tokens = torch.randint(self.vocabulary, (8, length + 1), device=self.setting.device)
        wait(self.setting)
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        wait(self.setting)
        return time.perf_counter() - start

    def launches(self) -> dict[str, float]:
        """Kernels of one step in its steady state, all and precaudit's, and the seconds that the device spends."""
        with ExitStack() as stack:
            stack.enter_context(self._audit())
            self.step()
            profile = stack.enter_context(torch.profiler.profile())
            self.step()
        on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        ours = [event for event in on_device if "_accumulate" in event.name]
        return {
            "all": len(on_device),
            "precaudit": len(ours),
            "precaudit_device_seconds": sum(event.device_time_total for event in ours) / 1e6,
        }


if __name__ == "__main__":
    sys.exit(main("overhead", measure))
