"""What auditing costs: whole training steps of a GPT, as ratios to plain steps measured in the same run.

    python tests/benchmarks/bench_tracing.py [--rounds N] [--device cuda]

Arms take turns, one step each, so that a machine whose speed drifts drifts for all of them; the ratio of each
arm is the median over rounds of its step over the plain step of the same round. Peers are measured when installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
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


class Arm:
    """A model of its own with an instrument on it; `step` is one training step."""

    def __init__(self, name: str, device: str, instrument: Callable[[nn.Module, Any, ExitStack], None]) -> None:
        torch.manual_seed(0)
        self.name, self.device = name, device
        self.model = GPT().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.instrument = instrument
        self.ratios: list[float] = []
        self.seconds: list[float] = []

    def step(self, tokens: torch.Tensor) -> float:
        """Hooks that are global would hear the other arms: they are on for this arm's step only."""
        with ExitStack() as stack:
            self.instrument(self.model, self.optimizer, stack)
            start = time.perf_counter()
            loss = F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start


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


def peers() -> dict[str, Callable[[nn.Module, Any, ExitStack], None]]:
    found: dict[str, Callable[[nn.Module, Any, ExitStack], None]] = {}
    try:
        from transformers.debug_utils import DebugUnderflowOverflow

        attached: set[int] = set()

        def underflow(model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
            if id(model) not in attached:
                attached.add(id(model))
                DebugUnderflowOverflow(model)

        found["transformers DebugUnderflowOverflow"] = underflow
    except ImportError:
        pass
    try:
        import wandb

        wandb.init(mode="offline", anonymous="allow")
        watched: set[int] = set()

        def watch(model: nn.Module, optimizer: Any, stack: ExitStack) -> None:
            if id(model) not in watched:
                watched.add(id(model))
                wandb.watch(model, log="all", log_freq=1)

        found["wandb.watch all, every step"] = watch
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    plain = Arm("plain", arguments.device, lambda model, optimizer, stack: None)
    arms = [
        Arm("precaudit, every step, all roles", arguments.device, Audited(1)),
        Arm("precaudit, sampled (default, 1 in 16)", arguments.device, Audited(16)),
        Arm("empty leaf hooks", arguments.device, leaf_hooks),
        *(Arm(name, arguments.device, instrument) for name, instrument in peers().items()),
    ]
    for round_ in range(arguments.rounds + 2):
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), device=arguments.device)
        baseline = plain.step(tokens)
        for arm in arms:
            seconds = arm.step(tokens)
            if round_ >= 2:
                arm.seconds.append(seconds)
                arm.ratios.append(seconds / baseline)
        if round_ >= 2:
            plain.seconds.append(baseline)
    sampled = arms[1]
    rows = [["plain", statistics.median(plain.seconds) * 1e3, 1.0, None, None]]
    for arm in arms:
        # A sampled arm is cheap in most steps and dear in one of sixteen: its mean counts.
        centre = statistics.mean if arm is sampled else statistics.median
        low, _, high = statistics.quantiles(arm.ratios, n=4)
        rows.append([arm.name, centre(arm.seconds) * 1e3, centre(arm.ratios), low, high])
    print(tabulate(rows, headers=["arm", "ms", "ratio", "25%", "75%"], floatfmt=("", ".1f", ".3f", ".3f", ".3f")))


if __name__ == "__main__":
    main()
