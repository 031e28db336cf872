"""The cost of the audit and the plan in sentences: time, Tensor Cores, energy, money. Unmeasured values are
mentioned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from precaudit.model import Report
from precaudit.reporting.facts import figures
from precaudit.words import NOT_MEASURED, is_number, number, plural, prose, seconds, share, size, usd, visible

WORTH = 1.03  # times as fast: less is no gain worth a word
SPANS = {
    "thousand_steps": "for a thousand steps",
    "run": "for the whole run",
    "epoch": "for an epoch",
    "thousand_samples": "for a thousand samples",
}
COUNTS = {"runs": "training run", "evaluations": "forward-backward evaluation"}


def tensor_cores(report: Report) -> list[str]:
    used = report.tensor_cores
    lines = []
    if used.time_share is None:
        why = "no GPU kernel was timed" if used.method == NOT_MEASURED else _reason(used.method)
        lines.append(f"Use of Tensor Cores: {NOT_MEASURED} ({why}).")
    else:
        part = used.time_share
        lines.append(
            f"Of the GPU kernels' time {share(part.native)} ran on Tensor Cores natively, {share(part.legacy)} by a "
            f"legacy path, {share(part.none)} without them, {share(part.unknown)} unknown ({prose(used.method)})."
        )
    if used.eligible_flops_share is not None:
        target = prose(report.plan.target)
        eligible = share(used.eligible_flops_share)
        lines.append(f"{eligible} of the arithmetic in products could run on Tensor Cores of {target}.")
    return lines + [prose(note) for note in used.notes]


def time_and_money(report: Report) -> list[str]:
    return [*step_times(report), *money(report), *profiling(report)]


def step_times(report: Report) -> list[str]:
    """Time of a training step per arm (`float32`, `plan`, ...)."""
    steps = _mapping(report.performance, "step_seconds")
    if not steps:
        return [f"Time of a step: {NOT_MEASURED}."]
    return [f"Time of a step: {_by_arm(steps, seconds)}.", *_speedup(report), *_beside_time(report.performance)]


def _by_arm(values: Mapping[str, Any], words: Callable[[Any], str]) -> str:
    """Every arm with its figure, those without one together at the end."""
    known = [f"{_arm(arm)} {words(value)}" for arm, value in values.items() if value is not None]
    missing = [_arm(arm) for arm, value in values.items() if value is None]
    return "; ".join([", ".join(known)] * bool(known) + [f"{', '.join(missing)} {NOT_MEASURED}"] * bool(missing))


def _arm(name: object) -> str:
    return {"amp": "default AMP", "plan": "the plan"}.get(str(name)) or prose(name)


def _speedup(report: Report) -> list[str]:
    """The plan's speedup, with its spread over the rounds."""
    p = report.performance
    spread, parts = _mapping(p, "speedup_quartiles"), []
    for arm, value in figures(p.get("speedup")).items():
        within = " ({:.2f}x to {:.2f}x)".format(*spread[arm]) if _pair(spread.get(arm)) else ""
        parts.append(f"{_arm(arm)} {value:.2f}x{within}")
    lines = [f"Speed against float32, with the middle half of the rounds: {', '.join(parts)}."] if parts else []
    timed = "float32" in figures(p.get("step_seconds")) and p.get("method")
    return [*lines, f"Timed: {prose(p['method'])}."] if timed else lines


def gain(report: Report) -> list[str]:
    """The plan's benefit in one sentence; nothing if unmeasured."""
    (faster, bounds), gpu = speedup(report), report.performance.get("gpu")
    if not gpu or faster is None:
        return []
    money = _cheaper(report.cost) if gained(faster, bounds) else ""
    return [f"Worth: {worth(faster, bounds, prose(gpu)).removesuffix('.')}{money}."]


def speedup(report: Report) -> tuple[float | None, Sequence[float] | None]:
    """The plan's speedup over float32, and its quartiles over the rounds; None where unknown."""
    faster = _mapping(report.performance, "speedup").get("plan")
    bounds = _mapping(report.performance, "speedup_quartiles").get("plan")
    return (faster if is_number(faster) and faster > 0 else None), (bounds if _pair(bounds) else None)


def expected(report: Report) -> str:
    """What the card's peaks promise of the plan: the end of a sentence which says that nothing was measured."""
    faster = _predicted(report)
    if faster is None:
        return ""
    gain = f"{faster:.1f}x the speed" if gained(faster, None) else "no gain"
    return f"; {gain} is expected on {prose(report.performance['predicted_for'])}"


def _predicted(report: Report) -> float | None:
    p = report.performance
    before, after = (_mapping(p, "predicted_step_seconds").get(arm) for arm in ("float32", "plan"))
    if not (is_number(before) and is_number(after) and after > 0 and p.get("predicted_for")):
        return None
    return before / after


def without_gain(report: Report) -> str:
    """How it is known that the plan is hardly faster than float32: `measured` or `expected`; empty where it may be."""
    faster, bounds = speedup(report)
    known, faster = ("measured", faster) if faster is not None else ("expected", _predicted(report))
    return known if faster is not None and not gained(faster, bounds) else ""


def gained(faster: float, bounds: Sequence[float] | None) -> bool:
    """Whether a plan with this speedup and these quartiles is certain to be faster."""
    return faster >= WORTH and (bounds is None or bounds[0] > 1)


def worth(faster: float, bounds: Sequence[float] | None, gpu: str) -> str:
    within = f", {bounds[0]:.2f}x to {bounds[1]:.2f}x in the middle half of the rounds" if bounds else ""
    if not gained(faster, bounds):
        return f"no sure gain over float32 measured on {gpu} ({faster:.2f}x{within})."
    less = f"the same training in {1 - 1 / faster:.0%} less time"
    return f"{faster:.2f}x the speed of float32 measured on {gpu}{within}: {less}."


def _cheaper(cost: Mapping[str, Any]) -> str:
    """The cost of the longest span with a known price, in float32 and with the plan."""
    for unit in ("run", "epoch", "thousand_steps"):
        before, after = (cost.get(f"usd_per_{unit}_{arm}") for arm in ("float32", "plan"))
        if is_number(before) and is_number(after):
            return f", for {usd(after)} in place of {usd(before)} {SPANS[unit]}"
    return ""


def _beside_time(p: Mapping[str, Any]) -> list[str]:
    """Sentences on the wait for data, memory, and the error of the prediction."""
    lines = []
    if is_number(p.get("data_wait_share")):
        lines.append(
            f"Data, and whatever else runs between two steps, takes {share(p['data_wait_share'])} of float32's time."
        )
    lines += _counters(p)
    if memory := figures(p.get("peak_memory_bytes")):
        whose = "" if p.get("gpu") else " of the whole process"
        lines.append(f"Peak memory{whose}: {_by_arm(memory, size)}.")
    if errors := figures(p.get("prediction_error")):
        predicted = _mapping(p, "predicted_step_seconds")
        parts = [f"{_arm(arm)} {seconds(predicted.get(arm))} ({error:+.0%})" for arm, error in errors.items()]
        lines.append(f"Predicted from the card's peaks, with the error: {', '.join(parts)}.")
    return lines


def _counters(p: Mapping[str, Any]) -> list[str]:
    """Sentences on the GPU's counters; none for a CPU."""
    if busy := figures(p.get("tensor_pipe_share")):
        steps = f"Tensor Cores busy, by the whole GPU's counters: {_by_arm(busy, share)} of the time."
        return [steps, *_layers_alone(p)]
    why = str(p.get("counters_method") or "")
    return [f"Tensor Cores by the GPU's counters: {prose(why)}."] if p.get("gpu") and why else []


def _layers_alone(p: Mapping[str, Any]) -> list[str]:
    layers = [
        f"{visible(fqn)} {_by_arm(known, share)}"
        for fqn, shares in _mapping(p, "tensor_pipe_share_by_layer").items()
        if (known := figures(shares))
    ]
    return [f"Tensor Cores busy in large layers' forward, repeated alone: {'; '.join(layers)}."] if layers else []


def _mapping(p: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = p.get(key)
    return value if isinstance(value, Mapping) else {}


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def money(report: Report) -> list[str]:
    """Energy and money in float32 and with the plan, where measured."""
    cost = report.cost
    price, device = cost.get("price_per_hour"), cost.get("device")
    lines = [_energy(report)]
    if price is None:
        return [*lines, f"Money: {NOT_MEASURED} (--price USD_PER_HOUR turns time into money)."]
    sums = {key: value for key, value in cost.items() if key.startswith("usd_per_")}
    rate = f"{usd(price)} an hour" + (f" of this machine ({prose(device)})" if device else "")
    before = _sums(sums, "_float32")
    lines.append(f"Money at {rate}: {_priced(before, {})}.")
    if before:
        lines.append(f"With the plan: {_priced(_sums(sums, '_plan'), before)}.")
    return lines


def _sums(sums: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The known amounts of one arm, by unit."""
    return {key[8:].removesuffix(arm): value for key, value in sums.items() if key.endswith(arm) and value is not None}


def _priced(sums: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """`0.05 USD for a thousand steps (51% less)`, and so on."""
    parts = []
    for unit, value in sums.items():
        old = before.get(unit)
        change = f" ({_change(value / old)})" if is_number(value) and is_number(old) and old else ""
        what = SPANS.get(unit) or f"per {prose(unit.replace('_', ' '))}"
        parts.append(f"{usd(value)} {what}{change}")
    return ", ".join(parts) or NOT_MEASURED


def _change(ratio: float) -> str:
    return f"{1 - ratio:.0%} less" if ratio < 1 else f"{ratio - 1:.0%} more"


def _energy(report: Report) -> str:
    joules = {arm: report.cost.get(f"energy_joules_per_thousand_steps_{arm}") for arm in ("float32", "plan")}
    if not figures(joules):
        why = report.performance.get("energy_method")
        reason = f" ({_reason(why)})" if why and why != NOT_MEASURED else ""
        return f"Energy: {NOT_MEASURED}{reason}."
    return f"Energy of a thousand steps, whole card: {_by_arm(joules, lambda value: number(value, 'J'))}."


def _reason(method: str) -> str:
    """What a method says of why it measured nothing, behind words that have said so."""
    return prose(method).removeprefix(f"{NOT_MEASURED}: ")


def profiling(report: Report) -> list[str]:
    """The duration of this profile, compared with the plain steps that any check would need."""
    p = report.performance
    total, startup = p.get("seconds_total"), p.get("seconds_startup")
    if total is None:
        return [f"Time of this profile: {NOT_MEASURED}."]
    line = f"This profile took {seconds(total)}"
    if _between(startup, total):
        line += f", {seconds(startup)} of it outside training steps"
    counts = [plural(p[key], noun) for key, noun in COUNTS.items() if isinstance(p.get(key), int)]
    measuring = p.get("seconds_measuring")
    timing = [f"Timing the precisions took {seconds(measuring)} of that."] if _between(measuring, total) else []
    made = [f"It made {' and '.join(counts)} in all, those to measure and to search for causes included."]
    return [f"{line}.", *timing, *_overhead(p), *(made if counts else [])]


def _overhead(p: Mapping[str, Any]) -> list[str]:
    plain, ratio = p.get("seconds_plain_steps"), p.get("ratio")
    if not _between(plain, math.inf) or not _between(ratio, math.inf):
        return []
    return [f"Its training steps, added up over all runs, took {ratio:.2f}x as long as plain ones ({seconds(plain)})."]


def _between(value: Any, most: Any) -> bool:
    """Whether a recorded time can be shown: clocks that ran backwards or apart give none."""
    return isinstance(value, int | float) and isinstance(most, int | float) and 0 <= value <= most != value
