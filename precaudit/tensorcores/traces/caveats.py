"""What a reader of a trace's figures should know: what the trace doesn't tell, and what speaks against a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from precaudit.hardware.generations import RANK, newest
from precaudit.tensorcores.traces.advice import COLLECTIVE
from precaudit.tensorcores.traces.attribution import Attribution
from precaudit.tensorcores.traces.cards import Card
from precaudit.tensorcores.traces.kernel_rules import TRITON_DOT
from precaudit.tensorcores.traces.trace import ProfilerTrace

if TYPE_CHECKING:
    from precaudit.tensorcores.traces.analysis import Group

MUCH = 0.05
"""Communication above this share of the time is worth a word."""
LOST = 0.01
"""A share of the launched kernels. Seven real traces had all of theirs."""


def notes(
    trace: ProfilerTrace, cards: Sequence[Card], groups: Sequence[Group], attribution: Attribution
) -> Iterable[str]:
    """All notes, those on the GPUs first."""
    total = float(trace.kernels.seconds.sum()) or 1.0
    early = float(trace.kernels.seconds[~attribution.launched].sum()) / total
    for card, device in zip(cards, trace.devices, strict=True):
        yield from _card_notes(card, device is not None, [group for group in groups if group.card is card])
    if not len(trace.launches.correlation):
        yield "The trace has no launch calls, so its kernels belong to no op and no layer."
    elif not _linked(trace):
        yield "The trace doesn't say which call launched a kernel, so its kernels belong to no op and no layer."
    elif early > 0.001:
        yield f"{early:.1%} of the GPU time was launched before the recording began and belongs to no layer."
    if not len(trace.scopes):
        yield "The trace has no module events: layers need with_stack=True while recording."
    yield from _by_some_path(groups, total)
    yield from _communication(groups, total)
    if _linked(trace):
        yield from _without_kernels(trace)
    if trace.unended:
        yield "The file's list of events has no end: it may have been cut off, and what is missing is in no figure."
    if trace.malformed:
        yield f"{trace.malformed} malformed events were skipped."
    yield from _suspicions(groups, total)


def _linked(trace: ProfilerTrace) -> bool:
    """Whether kernels have the number of a launch."""
    return bool((trace.kernels.correlation >= 0).any())


def _without_kernels(trace: ProfilerTrace) -> Iterable[str]:
    """What ran and was not recorded is in no share, and these look whole."""
    asked = trace.launches.correlation[trace.launches.is_kernel]
    lost = int((~np.isin(asked, trace.kernels.correlation)).sum())
    if lost > LOST * len(asked):
        yield (
            f"{lost:,} of {len(asked):,} launched kernels are not in the trace, and their time is in no figure: the "
            "profiler dropped them, the file was cut, or a CUDA graph was captured meanwhile."
        )


def _card_notes(card: Card, named: bool, groups: Sequence[Group]) -> Iterable[str]:
    """`named` says that the trace itself names the GPU."""
    if card.name is None:
        guess = "native and legacy paths can not be told apart"
        if card.generation:
            guess = f"taken to be of generation {card.generation.capitalize()}, the newest among its kernels"
        yield f"The trace does not name its GPU: {guess}. --target names it."
    elif card.gpu is None:
        yield f"No peak figures for {card.name}: shares of peak and checks by rate are not measured."
    elif card.nvidia and (caveat := card.gpu.caveat(unused=("bandwidth",))):
        yield f"Peak {caveat}."
    if card.nvidia and not card.tensor_cores:
        yield f"{card.name} has no Tensor Cores, whatever its kernels are called."
    if card.unused:
        yield f"The trace names its GPU, {card.name}: the target {card.unused} is not used."
    if not named and (newer := _newer(groups, card)):
        yield f"Kernels for {newer.capitalize()} GPUs don't run on {card.name}: the trace was taken on another GPU."


def _by_some_path(groups: Sequence[Group], total: float) -> Iterable[str]:
    """Kernels that use Tensor Cores by an unknown path, or on an unknown GPU."""
    untold = [g for g in groups if g.found.used and g.found.tensor_core == "unknown"]
    if (used := sum(g.seconds for g in untold) / total) <= 0.01:
        return
    yield f"Of the unknown, {used:.1%} of the GPU time is on Tensor Cores: only whether natively is not known."
    if any(g.found.rule == TRITON_DOT and g.card.generation in ("hopper", "blackwell") for g in untold):
        yield (
            "Of Triton's kernels the PTX in its cache (TRITON_CACHE_DIR) tells: wgmma or tcgen05 is native, mma.sync "
            "alone is legacy."
        )


def _newer(groups: Sequence[Group], card: Card) -> str | None:
    """The newest generation among the kernels, if it is newer than the GPU."""
    latest = newest(group.found.generation for group in groups)
    return latest if latest and card.generation and RANK[latest] > RANK[card.generation] else None


def _communication(groups: Sequence[Group], total: float) -> Iterable[str]:
    """Communication: its kernels wait for other GPUs in parallel with computing ones, so Tensor Cores lose no time."""
    apart = sum(g.seconds for g in groups if g.found.rule == COLLECTIVE)
    if total * MUCH < apart < total:
        used = sum(g.seconds for g in groups if g.found.used)
        yield (
            f"{apart / total:.1%} of the kernel time is communication between GPUs, its waiting included: without it, "
            f"{used / (total - apart):.1%} ran on Tensor Cores."
        )


def _suspicions(groups: Sequence[Group], total: float) -> Iterable[str]:
    """One a rule: where products are small, all of a model's are slow."""
    slow: dict[str, list[Group]] = {}
    for group in filter(_suspicious, groups):
        slow.setdefault(group.found.rule, []).append(group)
    for rule, same in slow.items():
        seconds, flops = sum(g.seconds for g in same), sum(g.flops or 0.0 for g in same)
        if seconds > 0.01 * total:
            others = len({group.owner for group in same}) - 1
            where = f"{same[0].owner} and {others} more" if others else same[0].owner
            yield (
                f"{where}: Tensor Core kernels by name ({same[0].name.removeprefix('void ')[:48]}) run at "
                f"{flops / seconds / 1e12:.3g} TFLOP/s, a rate of vector units: they wait for memory, or the rule "
                f"{rule} is wrong."
            )


def _suspicious(group: Group) -> bool:
    claimed, gpu = group.found.tensor_core in ("native", "legacy") and group.found.matmul, group.card.gpu
    if not claimed or gpu is None or group.tflops is None:
        return False
    listed = group.operands is None or group.card.peak(group.operands) is not None
    return listed and group.tflops < 0.5 * gpu.vector
