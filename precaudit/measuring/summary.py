"""Summarizes blocks of steps: medians, paired ratios with their spread, memory and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from precaudit.measuring.records import ARMS, FLOAT32, Block, Feed, Observation, Performance
from precaudit.words import plural

WARM_ROUNDS = 1
ENOUGH_ROUNDS = 3
ENERGY_SECONDS = 1.0  # below, the total's refresh (some ten times a second) is more than a tenth of the window
QUARTILES = (0.25, 0.75)


def steady(blocks: Sequence[Block]) -> list[Block]:
    """The blocks to evaluate: without the first round, blocks much shorter than the three longest (dominated by
    synchronization), and blocks with skipped steps."""
    warm = [block for block in blocks if block.round >= WARM_ROUNDS and not block.skipped]
    sizes = {block.round: block.steps for block in warm if block.arm == FLOAT32}
    enough = sorted(sizes.values(), reverse=True)[:ENOUGH_ROUNDS][-1:]
    return [block for block in warm if 2 * sizes.get(block.round, 0) >= sum(enough)]


def step_seconds(blocks: Sequence[Block], arm: str) -> list[float]:
    return [block.step_seconds for block in blocks if block.arm == arm]


def ratios(blocks: Sequence[Block], arm: str) -> list[float]:
    """The speedup of each of the arm's blocks over float32 in the same round."""
    reference = {block.round: block.step_seconds for block in blocks if block.arm == FLOAT32}
    return [
        reference[block.round] / block.step_seconds for block in blocks if block.arm == arm and block.round in reference
    ]


def median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def quartiles(values: Sequence[float]) -> list[float] | None:
    """The lower and upper quartile; not meaningful for fewer than three values."""
    return [float(q) for q in np.quantile(values, QUARTILES)] if len(values) >= ENOUGH_ROUNDS else None


def joules_per_step(blocks: Sequence[Block], arm: str) -> float | None:
    """Joules per step, over blocks that were long enough for the energy counter."""
    counted = [block for block in blocks if block.arm == arm and not block.skipped]
    long = [block for block in counted if block.joules is not None and block.seconds >= ENERGY_SECONDS]
    steps = sum(block.steps for block in long)
    return sum(block.joules or 0.0 for block in long) / steps if steps else None


def _tensor_share(blocks: Sequence[Block], arm: str) -> float | None:
    """The share of time with busy Tensor Cores, the median over the blocks that were read."""
    return median([b.tensor_share for b in blocks if b.arm == arm and b.tensor_share is not None])


def wait_share(feed: Feed, step_seconds: float | None) -> float | None:
    """The median wait for data relative to a step, at most 1."""
    if not feed.waits or not step_seconds:
        return None
    return min(1.0, float(np.median(feed.waits)) / step_seconds)


def performance(found: Observation, gpu: str | None) -> Performance:
    """The results of a timed run; `gpu` is the card's name, if any."""
    blocks = steady(found.blocks)
    times = {arm: step_seconds(blocks, arm) for arm in ARMS}
    against = {arm: ratios(blocks, arm) for arm in ARMS[1:]}
    medians = {arm: median(values) for arm, values in times.items()}
    joules = {arm: joules_per_step(found.blocks, arm) for arm in ARMS}
    return Performance(
        gpu=gpu,
        method=_method(found, blocks),
        step_seconds=medians,
        step_seconds_quartiles={arm: quartiles(values) for arm, values in times.items()},
        speedup={arm: median(values) for arm, values in against.items()},
        speedup_quartiles={arm: quartiles(values) for arm, values in against.items()},
        timed_steps={arm: sum(b.steps for b in blocks if b.arm == arm) or None for arm in ARMS},
        peak_memory_bytes={arm: _peak(blocks, arm) for arm in ARMS},
        energy_joules_per_step=joules,
        energy_method=_energy_method(found, joules),
        tensor_pipe_share={arm: _tensor_share(found.blocks, arm) for arm in ARMS},
        tensor_pipe_share_by_layer=found.layers or None,
        counters_method=found.counters,
        data_wait_share=wait_share(found.feed, medians[FLOAT32]),
        gpu_busy_share=_busy(found, medians),
    )


def _peak(blocks: Sequence[Block], arm: str) -> int | None:
    return max((b.peak_bytes for b in blocks if b.arm == arm and b.peak_bytes is not None), default=None)


def _method(found: Observation, blocks: Sequence[Block]) -> str:
    rounds = len({block.round for block in blocks})
    if not rounds and found.captured:
        return "not measured: the script replays CUDA graphs"
    if not rounds:
        return "not measured: the script ended before a timed step"
    arms = len({block.arm for block in blocks})
    alone = "float32 alone (the others need a GPU)" if found.device == "cpu" else "float32 alone"
    turns = f"{arms} precisions by turns" if arms > 1 else alone
    where = found.device if found.device != "cpu" else f"cpu with {plural(found.threads, 'thread')}"
    return f"{turns} in one training run, median of {plural(rounds, 'round')}, in eager mode, on {where}"


def _energy_method(found: Observation, joules: Mapping[str, float | None]) -> str:
    if found.energy.startswith("not measured") or joules[FLOAT32] is not None:
        return found.energy
    return f"not measured: no {ENERGY_SECONDS:g} s of steps in a row, which the energy counter needs"


def _busy(found: Observation, medians: Mapping[str, float | None]) -> dict[str, float] | None:
    """The kernels' share of a step's time: for the rest the GPU waits for the host."""
    shares = {}
    for arm, profiled in found.profiled.items():
        taken = medians.get(arm)
        if profiled.tensor_cores.measured and taken:
            shares[arm] = min(1.0, profiled.seconds / profiled.steps / taken)
    return shares or None
