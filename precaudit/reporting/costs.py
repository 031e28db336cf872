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
    """Time of a training step per arm (`float32`, `plan`, ...)."""
    steps = report.performance.get("step_seconds")
    if not isinstance(steps, Mapping) or not steps:
        return [f"Time of a step: {NOT_MEASURED}."]
    return [f"Time of a step: {', '.join(f'{prose(arm)} {_step(value)}' for arm, value in steps.items())}."]


def _step(value: Any) -> str:
    return seconds(value.get("median")) if isinstance(value, Mapping) else seconds(value)


def money(report: Report) -> list[str]:
    """Energy and money, where they were measured."""
    lines = [f"Energy: {_number(report.cost.get('energy_joules'), 'J')}."]
    price = report.cost.get("price_per_hour")
    if price is None:
        return [*lines, f"Money: {NOT_MEASURED} (--price USD_PER_HOUR turns time into money)."]
    sums = {key: value for key, value in report.cost.items() if key.startswith("usd_")}
    parts = [f"{_number(value, 'USD')} {prose(key[4:].replace('_', ' '))}" for key, value in sums.items()]
    return [*lines, f"Money at {_number(price, 'USD')} an hour: {', '.join(parts) or NOT_MEASURED}."]


def _number(value: Any, unit: str) -> str:
    return number(value, unit) if isinstance(value, int | float) else number(value)


def profiling(report: Report) -> list[str]:
    """What this profile itself took, beside the plain steps that any check would need."""
    p = report.performance
    total, plain = p.get("seconds_total"), p.get("seconds_plain_steps")
    if total is None:
        return [f"Time of this profile: {NOT_MEASURED}."]
    line = f"This profile took {seconds(total)}"
    if plain is not None:
        line += f": {_ratio(p)} the {seconds(plain)} that its training steps take plain"
    if p.get("seconds_startup") is not None:
        line += f", and {seconds(p['seconds_startup'])} of start-up"
    counts = [plural(p[key], noun) for key, noun in COUNTS.items() if isinstance(p.get(key), int)]
    return [f"{line}.", *([f"It needed {' and '.join(counts)}."] if counts else [])]


COUNTS = {"runs": "training run", "evaluations": "forward-backward evaluation"}


def _ratio(performance: Mapping[str, Any]) -> str:
    ratio = performance.get("ratio")
    return f"{ratio:.2f}x" if isinstance(ratio, int | float) and math.isfinite(ratio) else "an unknown multiple of"
