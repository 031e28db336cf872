"""The data of the page's charts and tree: plain JSON, small enough for thousands of layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, zip_longest
from typing import Any

from precaudit.formats import FORMATS, HALF_FORMATS
from precaudit.model import KernelTime, Layer, Report, TensorStats, Trial, Verification
from precaudit.model.ranges import residue_limit
from precaudit.reporting.drawing import AFTER, BEFORE
from precaudit.reporting.endings import last_tried
from precaudit.reporting.facts import listed
from precaudit.reporting.places import WHOLE
from precaudit.reporting.ranges import CAST_ROLES
from precaudit.words import SHORT_FORMATS, visible

# a gradient that loses less than this share of its energy trains the same
ENERGY_BUDGET = 1e-4
POINTS = 300
TIMED = 30  # layers
SCALES = (-8, 32)
Rows = list[dict[str, Any]]


def page_data(report: Report) -> dict[str, Any]:
    return {
        "formats": _formats(),
        "format": shown_format(report),
        "roles": CAST_ROLES,
        "layers": [
            [visible(layer.fqn) or WHOLE, visible(layer.type), report.plan.modules.get(layer.fqn, report.plan.default)]
            for layer in report.layers
        ],
        "tensors": {role: _tensors(report.layers, role) for role in CAST_ROLES},
        "scale": _scale(report),
        "trainings": trainings(report),
        "times": _bars(times(report)),
        "plan": _plan(report),
    }


def shown_format(report: Report) -> str:
    """The half format shown first: the plan's, or float16, which has the shorter range."""
    planned = (report.plan.default, *report.plan.modules.values())
    return next((name for name in planned if name in HALF_FORMATS), "float16")


def _formats() -> dict[str, Any]:
    """Exponents at which a format's zones begin: below `cut` values round to zero, below `sub` they lose bits."""
    return {
        f.name: {
            "short": SHORT_FORMATS[f.name],
            "cut": f.exponent_min - f.mantissa - 1,
            "sub": f.exponent_min,
            "top": f.exponent_max + 1,
            "limit": f.overflow_threshold,
        }
        for f in FORMATS.values()
    }


def _scale(report: Report) -> dict[str, Any]:
    scale = report.plan.loss_scale
    k = round(math.log2(scale.init_scale)) if scale.init_scale and scale.init_scale >= 2.0**-60 else 0
    low, high = SCALES
    ends = [k, *(scale.window or ())]
    bounded = [max(-60, min(60, end)) for end in ends]
    return {
        "k": bounded[0] if scale.mode != "none" else 0,
        "window": bounded[1:] or None,
        "low": min(low, *bounded),
        "high": max(high, *bounded),
    }


# ---------------------------------------------------------------- ranges


def _tensors(layers: Iterable[Layer], role: str) -> list[list[Any]]:
    """[layer, parameter, first exponent, shares, amax, smallest, keep, residue] for each tensor with values; `residue`
    is 1 for a gradient that is zero but for rounding."""
    return [
        [i, visible(tensor.name), *_histogram(tensor.stats), int(tensor.is_gradient and tensor.stats.rms < limit)]
        for i, layer in enumerate(layers)
        for limit in [residue_limit(each.stats for each in layer.tensors if each.is_gradient)]
        for tensor in layer.tensors
        if tensor.role == role and tensor.stats.exponents.total
    ]


def _histogram(stats: TensorStats) -> list[Any]:
    exponents = stats.exponents
    total = exponents.total
    shares = [float(f"{count / total:.2g}") for count in exponents.counts]
    return [exponents.minimum, shares, _short(stats.amax), _short(stats.amin_nonzero), kept_from(stats)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def kept_from(stats: TensorStats, budget: float = ENERGY_BUDGET) -> int:
    """The largest exponent below which at most `budget` of the energy (sum of squares) lies."""
    exponents = stats.exponents
    energies = [math.ldexp(float(count), 2 * (i - len(exponents.counts))) for i, count in enumerate(exponents.counts)]
    allowed = budget * sum(energies)
    return exponents.minimum + sum(below <= allowed for below in accumulate(energies))


# ---------------------------------------------------------------- trainings


def trainings(report: Report) -> dict[str, Any]:
    """Loss curves, the band that counts as the same, and paired differences of the plan that was tried last. Steps
    count from 0, as those of findings do."""
    v = report.verification
    last = last_tried(v)
    references = {trial.seed: trial for trial in v.trials if trial.is_reference}
    turns = [number for number in listed(report, "optimizer_of_loss") if isinstance(number, int)]
    return {
        "curves": [row for trial in v.trials for row in _curve(trial, last, turns)],
        "band": _band(list(references.values()), v.margin, turns),
        "pairs": [
            row
            for trial in v.trials
            if trial.plan == last and trial.seed in references
            for row in _pair(references[trial.seed], trial, turns)
        ],
        "signals": _compared(v),
        "broken": [_broken(trial) for trial in v.trials if not all(map(math.isfinite, trial.losses))],
    }


def _compared(v: Verification) -> dict[str, Any]:
    """The verdict's quantity for the chart: a mean over some steps, and its allowed range."""
    mean, (first, last) = v.difference.mean, v.compared or (1, v.steps)
    known = mean is not None and math.isfinite(mean)
    return {"margin": v.margin or 0, "mean": mean if known else None, "first": first - 1, "last": last - 1}


def kinds(v: Verification) -> list[str]:
    """The kinds of runs that the curves show, float32 first."""
    last, trials = last_tried(v), sorted(v.trials, key=lambda trial: not trial.is_reference)
    return list(dict.fromkeys(_kind(trial, last) for trial in trials))


def _kind(trial: Trial, last: str | None) -> str:
    if trial.is_reference:
        return BEFORE
    if trial.plan == last:
        return AFTER
    return "earlier plans" if trial.is_candidate else "other runs"


def _points(length: int, turns: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Steps to draw and the curve that each belongs to: optimizers that take turns have a curve each."""
    curves: dict[str, list[int]] = defaultdict(list)
    for step, number in zip_longest(range(length), turns[:length], fillvalue=0):
        curves[f", optimizer {number}" if turns else ""].append(step)
    for curve, steps in curves.items():
        yield from ((step, curve) for step in steps[:: max(1, math.ceil(length / POINTS))])


def _curve(trial: Trial, last: str | None, turns: Sequence[int]) -> Rows:
    run, kind = f"{visible(trial.plan)}, seed {trial.seed}", _kind(trial, last)
    return [
        {"run": run + curve, "kind": kind, "step": i, "loss": trial.losses[i]}
        for i, curve in _points(len(trial.losses), turns)
        if math.isfinite(trial.losses[i])
    ]


def _band(references: list[Trial], margin: float | None, turns: Sequence[int]) -> Rows:
    """The band of equal losses, relative to the same scale as `_pair`."""
    if margin is None or not references:
        return []
    scale, rows = sum(trial.scale or 0.0 for trial in references) / len(references), []
    for i, curve in _points(min(len(trial.losses) for trial in references), turns):
        mean = sum(trial.losses[i] for trial in references) / len(references)
        width = margin * (scale or abs(mean))
        if math.isfinite(mean):
            rows.append({"of": curve, "step": i, "low": mean - width, "high": mean + width})
    return rows


def _pair(reference: Trial, trial: Trial, turns: Sequence[int]) -> Rows:
    """Differences of a pair, relative to the verdict's scale where it has one."""
    rows = []
    for i, curve in _points(min(len(reference.losses), len(trial.losses)), turns):
        base, loss = reference.losses[i], trial.losses[i]
        scale = reference.scale or abs(base)
        if math.isfinite(base) and math.isfinite(loss) and scale:
            rows.append({"run": f"seed {trial.seed}{curve}", "of": curve, "step": i, "d": (loss - base) / scale})
    return rows


def _broken(trial: Trial) -> str:
    step = next(i for i, loss in enumerate(trial.losses) if not math.isfinite(loss))
    return f"{visible(trial.plan)}, seed {trial.seed}: the loss is not finite at step {step}"


# ---------------------------------------------------------------- time, and the plan


def times(report: Report) -> Rows:
    """Layers by GPU time with their seconds in each Tensor Core class, under the plan and before it where both were
    measured."""
    rows: Rows = []
    for layer in report.tensor_cores.layers:
        after, before = _by_class(layer.time), _by_class(layer.before)
        if after or before:
            rows.append({"name": visible(layer.fqn or "(outside modules)"), "seconds": after, "before": before})
    return sorted(rows, key=lambda row: -max(sum(row["seconds"].values()), sum(row["before"].values())))[:TIMED]


def _bars(times: Rows) -> dict[str, Any]:
    """The chart's: a layer's seconds before and under the plan, one row a class."""
    rows = [
        {"row": i, "when": when, "kind": kind, "seconds": seconds}
        for i, layer in enumerate(times)
        for when, classes in ((BEFORE, layer["before"]), (AFTER, layer["seconds"]))
        for kind, seconds in classes.items()
    ]
    return {"names": [layer["name"] for layer in times], "rows": rows}


def _by_class(time: KernelTime | None) -> dict[str, float]:
    """Seconds in each Tensor Core class; nothing where none were measured."""
    spent = {kind: share * time.seconds for kind, share in vars(time.time_share).items()} if time else {}
    return {kind: seconds for kind, seconds in spent.items() if 0 < seconds < math.inf}


def _plan(report: Report) -> dict[str, Any]:
    plan = report.plan
    types = {layer.fqn: layer.type for layer in report.layers}
    reasons = list(dict.fromkeys(plan.because.values()))
    index = {reason: i for i, reason in enumerate(reasons)}
    planned = [(fqn, format, types.get(fqn, "")) for fqn, format in plan.modules.items()]
    planned += [(f"{op.fqn}:{op.op}", op.format, "op") for op in plan.ops]
    rows = [
        [visible(name), format, visible(kind), index.get(plan.because.get(name, ""), -1)]
        for name, format, kind in planned
    ]
    return {"default": plan.default, "modules": rows, "reasons": [visible(reason) for reason in reasons]}
