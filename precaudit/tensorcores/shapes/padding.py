"""Which dimensions to pad: those whose padding would shorten a step, as the roofline predicts it.

A step that its launches or its memory traffic decide gets no shorter, nor does one whose product is a small part of it.
With a larger batch it may: what costs next to nothing is mentioned where much of the work is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precaudit.finding import finding
from precaudit.formats import FORMATS
from precaudit.hardware.peaks import Gpu
from precaudit.model import Finding, Layer, Op, Plan, Severity
from precaudit.tensorcores.shapes.alignment import AFFORDABLE, Padding, advice, growth, misaligned, multiple, sizes
from precaudit.tensorcores.shapes.eligibility import runs_in, total_flops, where, work
from precaudit.tensorcores.shapes.roofline import predict_step, product_seconds, seconds_at
from precaudit.words import share

WORTH = 0.01  # of a step: less is not worth a word
MATTERS = 0.05  # of a step, or of its work in products
SLIGHT = 1.05  # a padding that adds no more work than this is worth a note in any case
SLOWED = 0.1  # of the peak: what products of unaligned sizes reached on an H100 where others came near it


@dataclass(frozen=True)
class Cause:
    """Like products with the same dimensions to pad."""

    op: str
    format: str
    padding: tuple[Padding, ...]

    @property
    def float8(self) -> bool:
        return FORMATS[self.format].storage_bits == 8


def alignment_findings(
    ops: Sequence[Op], plan: Plan, target: Gpu, layers: Sequence[Layer] = (), steps: int = 1
) -> tuple[Finding, ...]:
    """PA401 for every dimension to pad that could be worth it, modules with the same together, most time first."""
    alike: dict[Cause, list[Op]] = {}
    for op in sorted(ops, key=total_flops, reverse=True):
        if cause := _cause(op, plan, target):
            alike.setdefault(cause, []).append(op)
    saved = _saved(alike, ops, plan, target, layers, steps)
    work_of = {cause: sum(map(total_flops, same)) for cause, same in alike.items()}
    least = MATTERS * sum(map(total_flops, ops))
    worthwhile = [c for c in alike if saved[c] >= WORTH or (work_of[c] >= least and growth(c.padding) <= SLIGHT)]
    ranked = sorted(worthwhile, key=lambda cause: (-saved[cause], -work_of[cause]))
    return tuple(_finding(cause, alike[cause], saved[cause], target) for cause in ranked)


def _cause(op: Op, plan: Plan, target: Gpu) -> Cause | None:
    product, format_name = work(op), runs_in(op, plan)
    if not target.nvidia or product is None or not product.reduces or not product.flops:
        return None
    if op.dtype == "float64" or target.peak(format_name) is None:
        return None
    padding = tuple(misaligned(product.dims, format_name))
    return Cause(op.op, format_name, padding) if padding else None


def _saved(
    alike: dict[Cause, list[Op]], ops: Sequence[Op], plan: Plan, target: Gpu, layers: Sequence[Layer], steps: int
) -> dict[Cause, float]:
    """The share of a step that each padding could save, at most."""
    step = predict_step(ops, layers, plan, target, steps)
    seconds = {cause: [_seconds(cause, op, plan, target) for op in same] for cause, same in alike.items()}
    slower = {cause: sum(now - aligned for now, aligned, _ in each) / steps for cause, each in seconds.items()}
    shorter = {cause: sum(now - padded for now, _, padded in each) / steps for cause, each in seconds.items()}
    busy = step.seconds_on_gpu + sum(slower.values())
    total = max(busy, step.seconds_launch)
    return {cause: 1.0 - max(busy - less, step.seconds_launch) / total for cause, less in shorter.items()}


def _seconds(cause: Cause, op: Op, plan: Plan, target: Gpu) -> tuple[float, float, float]:
    """As it is, as the roofline has it, and padded. What float8 doesn't take runs in bfloat16 there."""
    aligned = product_seconds(op, plan, target)
    slowed = seconds_at(max(SLOWED * target.rate(cause.format), target.vector), op, plan, target)
    padded = seconds_at(target.rate(cause.format) / growth(cause.padding), op, plan, target)
    return (aligned if cause.float8 else slowed), aligned, padded


def _finding(cause: Cause, same: Sequence[Op], saved: float, target: Gpu) -> Finding:
    op = same[0]
    severity: Severity = "warning" if saved > MATTERS and growth(cause.padding) <= AFFORDABLE else "note"
    gain = f"predicted to save up to {share(saved)} of a step on {target.name}"
    if saved < WORTH:
        gain = f"in steps as short as these it is predicted to save nothing on {target.name}, in larger batches it may"
    consequence = "so it can't run in float8" if cause.float8 else "so Tensor Cores run it below their rate"
    return finding(
        "PA401",
        severity,
        f"{where(same)} with {sizes(cause.padding)} ({cause.format}), no multiple of {multiple(cause.format)}, "
        f"{consequence}",
        f"{advice(cause.padding)}; {gain}",
        op.fqn,
        op.op,
        op.location,
        share_of_step=saved,
        format=cause.format,
        padding={each.dimension: {"size": each.size, "pad_to": each.target} for each in cause.padding},
        layers=[each.fqn for each in same],
    )
