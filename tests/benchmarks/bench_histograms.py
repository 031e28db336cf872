"""What one fused pass costs beside single torch reductions: `python tests/benchmarks/bench_histograms.py`.

Contenders take turns, so that a busy machine slows all of them; the best turn of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from precaudit.histograms import Accumulator, observe

Work = Callable[[], object]


def best_times(works: dict[str, Work], turns: int, repeats: int = 1) -> dict[str, float]:
    """Seconds a call, the best of `turns` rounds through all of them."""
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(turns):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            best[name] = min(best[name], (time.perf_counter() - start) / repeats)
    return best


def distributions(numel: int) -> dict[str, torch.Tensor]:
    """Values as activations, their ReLU, gradients with a long tail, and the worst case: all exponents alike."""
    normal = torch.randn(numel)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "gradient": normal**3 * 1e-4,
        "outliers": torch.where(torch.arange(numel) % 1000 == 0, normal * 1e4, normal),
        "log-uniform": torch.exp2(torch.rand(numel) * 80 - 60) * normal.sign(),
    }


def large(numel: int, turns: int) -> list[list[object]]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, values in distributions(numel).items():
            tensor, slot = values.to(dtype), Accumulator()
            times = best_times({"max": tensor.max, "pass": lambda t=tensor, s=slot: s.add(t)}, turns)
            nanoseconds = times["pass"] / numel * 1e9
            rows.append([str(dtype).removeprefix("torch."), name, nanoseconds, times["pass"] / times["max"]])
    return rows


def alternatives(numel: int, turns: int) -> list[list[object]]:
    """Other ways to learn less or the same, as ratios to torch.max."""
    values, slot = torch.randn(numel), Accumulator()
    new = values + 1e-3
    times = best_times(
        {
            "torch.max": values.max,
            "one pass": lambda: slot.add(values),
            "one pass, difference": lambda: slot.add_difference(new, values),
            "torch.bincount of exponents": lambda: torch.bincount((values.view(torch.int32) >> 23) & 255),
            "torch.histc of log2": lambda: torch.histc(values.abs().log2(), bins=277, min=-149, max=128),
            "torch.frexp": lambda: torch.frexp(values),
        },
        turns,
    )
    return [[name, seconds / numel * 1e9, seconds / times["torch.max"]] for name, seconds in times.items()]


def small() -> list[list[object]]:
    rows = []
    for numel in (1, 100, 1000, 10_000, 60_000):
        values, slot = torch.randn(numel), Accumulator()
        works = {"max": values.max, "pass": lambda s=slot, v=values: s.add(v), "observe": lambda v=values: observe(v)}
        times = best_times(works, turns=15, repeats=200)
        rows.append([numel, *(times[name] * 1e6 for name in works)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numel", type=int, default=8 << 20)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.numel} values, {arguments.threads} threads, torch {torch.__version__}\n")
    print(
        tabulate(
            large(arguments.numel, arguments.turns), ["dtype", "values", "ns a value", "x torch.max"], floatfmt=".2f"
        )
    )
    print()
    print(
        tabulate(
            alternatives(arguments.numel, max(3, arguments.turns // 3)),
            ["float32", "ns a value", "x torch.max"],
            floatfmt=".2f",
        )
    )
    print()
    print(tabulate(small(), ["values", "torch.max (us)", "add (us)", "observe (us)"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
