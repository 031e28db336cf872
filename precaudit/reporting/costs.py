"""What the audit and the plan cost, in sentences: time, Tensor Cores, energy, money. Unmeasured is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from precaudit.model import Report
from precaudit.reporting.words import NOT_MEASURED, number, plural, prose, seconds, share


def tensor_cores(report: Report) -> list[str]:
    used = report.tensor_cores
    lines = []
    if used.time_share is None:
        why = "no GPU kernel was timed" if used.method == NOT_MEASURED else prose(used.method)
        lines.append(f"Use of Tensor Cores: {NOT_MEASURED} ({why}).")
    else:
        part = used.time_share
        lines.append(
            f"Of the GPU kernels' time {share(part.native)} ran on Tensor Cores natively, {share(part.legacy)} by a "
            f"legacy path, {share(part.none)} without them, {share(part.unknown)} unknown ({prose(used.method)})."
        )
    if used.eligible_flops_share is not None:
        target = prose(report.plan.target)
        lines.append(f"{share(used.eligible_flops_share)} of the operations could run on Tensor Cores of {target}.")
    return lines + [prose(note) for note in used.notes]


def step_times(report: Report) -> list[str]:
    """Time of a training step per arm (`float32`, `plan`, ...); a single number is plain float32's."""
    steps = report.performance.get("step_seconds")
    if isinstance(steps, int | float):
        steps = {"float32": steps, "plan": None}
    if not isinstance(steps, Mapping) or not steps:
        return [f"Time of a step: {NOT_MEASURED}."]
    return [f"Time of a step: {', '.join(f'{prose(arm)} {_step(value)}' for arm, value in steps.items())}."]


def _step(value: Any) -> str:
    return seconds(value.get("median")) if isinstance(value, Mapping) else seconds(value)


def money(report: Report) -> list[str]:
    """Energy and money, where they were measured."""
    lines = [f"Energy: {number(report.cost.get('energy_joules'), 'J')}."]
    price = report.cost.get("price_per_hour")
    if price is None:
        return [*lines, f"Money: {NOT_MEASURED} (--price USD_PER_HOUR turns time into money)."]
    sums = {key: value for key, value in report.cost.items() if key.startswith("usd_")}
    parts = [f"{number(value, 'USD')} {prose(key[4:].replace('_', ' '))}" for key, value in sums.items()]
    return [*lines, f"Money at {number(price, 'USD')} an hour: {', '.join(parts) or NOT_MEASURED}."]


def profiling(report: Report) -> list[str]:
    """What this profile itself took, beside the plain steps that any check would need."""
    p = report.performance
    total, startup = p.get("seconds_total"), p.get("seconds_startup")
    if total is None:
        return [f"Time of this profile: {NOT_MEASURED}."]
    line = f"This profile took {seconds(total)}"
    if _between(startup, total):
        line += f", {seconds(startup)} of it outside training steps"
    counts = [plural(p[key], noun) for key, noun in COUNTS.items() if isinstance(p.get(key), int)]
    return [f"{line}.", *_overhead(p), *([f"It needed {' and '.join(counts)}."] if counts else [])]


def _overhead(p: Mapping[str, Any]) -> list[str]:
    plain, ratio = p.get("seconds_plain_steps"), p.get("ratio")
    if not _between(plain, math.inf) or not _between(ratio, math.inf):
        return []
    return [f"Its training steps took {ratio:.2f}x as long as the same steps do without precaudit ({seconds(plain)})."]


def _between(value: Any, most: Any) -> bool:
    """Whether a recorded time can be shown: clocks that ran backwards or apart give none."""
    return isinstance(value, int | float) and isinstance(most, int | float) and 0 <= value <= most != value


COUNTS = {"runs": "training run", "evaluations": "forward-backward evaluation"}
