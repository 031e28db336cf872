"""What auditing costs a GPT of more than 100 million parameters: whole steps, plain and audited taking turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from stage import Setting, main, wait
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bench_tracing import GPT, LENGTH, Audited

WARMUP = 3


def measure(setting: Setting) -> dict[str, Any]:
    arms = {"plain": Arm(setting, None), "every step": Arm(setting, 1), "default, 1 in 16": Arm(setting, 16)}
    parameters = sum(p.numel() for p in arms["plain"].model.parameters())
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(WARMUP + setting.size(32, 2)):
        for name, arm in arms.items():
            taken[name].append(arm.step())
    plain = taken.pop("plain")[WARMUP:]
    ratios = {name: [a / b for a, b in zip(times[WARMUP:], plain, strict=True)] for name, times in taken.items()}
    return {
        "parameters": parameters,
        "plain_step_seconds": statistics.median(plain),
        "rounds": len(plain),
        # A sampled arm is cheap in most steps and dear in one of sixteen: its mean counts.
        "ratio": {name: (statistics.mean if "16" in name else statistics.median)(r) for name, r in ratios.items()},
        "quartiles": {name: statistics.quantiles(r, n=4) for name, r in ratios.items()},
    }


class Arm:
    """A model of its own; the audit is on during this arm's steps only, for its hooks are global."""

    def __init__(self, setting: Setting, every: int | None) -> None:
        torch.manual_seed(0)
        self.setting, self.vocabulary = setting, setting.size(50304, 64)
        width, heads = setting.size(768, 32), setting.size(12, 2)
        self.model = GPT(setting.size(12, 1), width, heads, self.vocabulary).to(setting.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.instrument: Callable[..., None] = Audited(every) if every else lambda *_: None

    def step(self) -> float:
        length = self.setting.size(LENGTH, 8)
        tokens = torch.randint(self.vocabulary, (8, length + 1), device=self.setting.device)
        with ExitStack() as stack:
            self.instrument(self.model, self.optimizer, stack)
            wait(self.setting)
            start = time.perf_counter()
            loss = F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            wait(self.setting)
            return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main("overhead", measure))
