"""What auditing costs: whole training steps of a GPT, as ratios to plain steps measured in the same run.

    python tests/benchmarks/bench_tracing.py [--rounds N] [--device cuda]

Arms take turns, a few steps each, so that a machine whose speed drifts drifts for all of them; the ratio of each
arm is the median over rounds of its steps over the plain steps of the same round. All train the same model, because
where a model happens to lie in memory makes more of a difference than some of the arms. The first step of a turn
isn't timed: instruments are attached there, which happens once in a real run. Peers are measured when installed.

How far the machine can tell is shown by an arm that is plain again. Others on a shared machine only ever add time, so
the quiet column compares the fastest quarters of both arms' turns; a sampled arm has none, for its fast turns are those
without an audited step.

Last, every second step is audited: each is held against the mean of the two plain ones beside it, over which no
machine drifts far. So are steps that are audited without being recorded, of which a sampled audit has most, and plain
steps themselves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import precaudit

LAYERS, WIDTH, HEADS, VOCABULARY, BATCH, LENGTH = 6, 384, 6, 4096, 8, 128


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.act, self.out = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(self.ln1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.out(self.act(self.fc(self.ln2(x))))


class GPT(nn.Module):
    def __init__(
        self, layers: int = LAYERS, width: int = WIDTH, heads: int = HEADS, vocabulary: int = VOCABULARY
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


TURN = 5
"""Steps of a turn, no divisor of the sampled arm's sixteen, so that its audited steps fall on all of them."""


class Training:
    """The model that all arms train, in their turns."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = GPT().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)

    def step(self) -> float:
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), device=self.device)
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


Instrument = Callable[[nn.Module, Any, ExitStack], None]


class Arm:
    def __init__(self, name: str, instrument: Instrument) -> None:
        self.name, self.instrument = name, instrument
        self.seconds: list[float] = []

    def turn(self, training: Training) -> None:
        """Hooks that are global would hear the other arms: they are on for this arm's steps only. What is kept is
        the mean, since a sampled arm is cheap in most steps and dear in one of sixteen."""
        with ExitStack() as stack:
            self.instrument(training.model, training.optimizer, stack)
            self.seconds.append(statistics.mean([training.step() for _ in range(TURN)][1:]))


class Audited:
    """precaudit.audit kept over the arm's steps, paused between them."""

    def __init__(self, every: int) -> None:
        self.every, self.audit = every, None

    def __call__(self, model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
        if self.audit is None:
            self.audit = precaudit.audit(model, optimizer=optimizer, every=self.every)
        stack.enter_context(self.audit)


def leaf_hooks(model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
    for module in model.modules():
        if not list(module.children()):
            stack.callback(module.register_forward_hook(lambda *_: None).remove)
            stack.callback(module.register_full_backward_hook(lambda *_: None).remove)


def hooks_taken_off(model: nn.Module, stack: ExitStack) -> None:
    """What has no way of its own to leave a model would slow the other arms."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            stack.callback(hooks.update, dict(hooks))
            stack.callback(hooks.clear)


def peers() -> dict[str, Instrument]:
    found: dict[str, Instrument] = {}
    try:
        from transformers.debug_utils import DebugUnderflowOverflow

        def underflow(model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
            hooks_taken_off(model, stack)
            DebugUnderflowOverflow(model)

        found["transformers DebugUnderflowOverflow"] = underflow
    except ImportError:
        pass
    try:
        import wandb

        wandb.init(mode="offline", anonymous="allow")

        def watch(model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
            wandb.watch(model, log="all", log_freq=1)
            stack.callback(wandb.unwatch, model)

        found["wandb.watch all, every step"] = watch
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    training = Training(arguments.device)
    plain = Arm("plain", lambda model, optimizer, stack: None)
    sampled = Arm("precaudit, sampled (default, 1 in 16)", Audited(16))
    arms = [
        plain,
        Arm("precaudit, every step, all roles", Audited(1)),
        sampled,
        Arm("empty leaf hooks", leaf_hooks),
        Arm("plain again", lambda model, optimizer, stack: None),
        *(Arm(name, instrument) for name, instrument in peers().items()),
    ]
    for _ in range(arguments.rounds + 1):
        for arm in arms:
            arm.turn(training)
    print(tabulate([row(arm, plain, sampled) for arm in arms], HEADINGS, floatfmt=("", ".1f", *[".3f"] * 4)))
    steps = 4 * arguments.rounds
    recorded = beside(training, Audited(1), steps)
    between = beside(training, Audited(sys.maxsize), steps)
    for name, found in (
        ("recorded", recorded),
        ("audited, but not recorded", between),
        ("plain", beside(training, plain.instrument, steps)),
    ):
        print(f"steps {name}: {found.centre:.3f} of the plain ones beside them, standard error {found.error:.3f}")
    print(f"so with one step in sixteen recorded: {(recorded.centre + 15 * between.centre) / 16:.3f}")


class Beside(NamedTuple):
    centre: float
    error: float


def beside(training: Training, instrument: Instrument, steps: int) -> Beside:
    """Every second step over the mean of its neighbours: the median ratio, and its standard error by bootstrap."""
    seconds = []
    for step in range(2 * steps + 3):
        with ExitStack() as stack:
            if step % 2:
                instrument(training.model, training.optimizer, stack)
            seconds.append(training.step())
    before, here, after = (np.array(part) for part in (seconds[2:-1:2], seconds[3::2], seconds[4::2]))
    ratios = 2 * here / (before + after)  # the first step's hooks and local errors aside
    spread = bootstrap([ratios], np.median, n_resamples=1000, method="basic", random_state=0)
    return Beside(float(np.median(ratios)), float(spread.standard_error))


HEADINGS = ["arm", "ms", "ratio", "25%", "75%", "quiet"]


def row(arm: Arm, plain: Arm, sampled: Arm) -> list[Any]:
    """The first turn warmed up. Of a sampled arm the mean counts: audited steps are rare, and dear."""
    centre = statistics.mean if arm is sampled else statistics.median
    ratios = [seconds / base for seconds, base in zip(arm.seconds[1:], plain.seconds[1:], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    quiet = None if arm is sampled else fastest(arm) / fastest(plain)
    return [arm.name, centre(arm.seconds[1:]) * 1e3, centre(ratios), low, high, quiet]


def fastest(arm: Arm) -> float:
    """The upper end of the fastest quarter of its turns."""
    return statistics.quantiles(arm.seconds[1:], n=4)[0]


if __name__ == "__main__":
    main()
