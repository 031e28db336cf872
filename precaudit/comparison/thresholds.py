"""`--fail-on METRIC:THRESHOLD`: the default thresholds with what the user changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from precaudit.catalogue.metrics import METRICS
from precaudit.comparison.changes import Change
from precaudit.errors import PrecauditError

DEFAULTS: Mapping[str, float | None] = {name: metric.default for name, metric in METRICS.items()}


def parse_thresholds(rules: Sequence[str]) -> dict[str, float | None]:
    """Thresholds by metric: the defaults, changed rule by rule; `all:off` clears what stands before it."""
    thresholds = dict(DEFAULTS)
    for rule in rules:
        metric, separator, text = (part.strip() for part in rule.partition(":"))
        if metric not in (*METRICS, "all") or not separator:
            raise PrecauditError(f"--fail-on {rule!r}: want METRIC:THRESHOLD; metrics are {', '.join(METRICS)}")
        if metric == "all" and text != "off":
            raise PrecauditError(f"--fail-on {rule!r}: units differ by metric, so 'all' takes only 'off'")
        threshold = None if text == "off" else _number(rule, text)
        thresholds.update({name: threshold for name in (METRICS if metric == "all" else (metric,))})
    return thresholds


def asked_for(rules: Sequence[str]) -> tuple[str, ...]:
    """The metrics whose threshold a rule sets by name: a gate that can't see one of these must not open."""
    named, thresholds = [rule.partition(":")[0].strip() for rule in rules], parse_thresholds(rules)
    return tuple(name for name in dict.fromkeys(named) if thresholds.get(name) is not None)


def _number(rule: str, text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise PrecauditError(f"--fail-on {rule!r}: the threshold must be a number above 0, or 'off'")
    return number


def judge(changes: Sequence[Change], thresholds: Mapping[str, float | None]) -> list[Change]:
    """The changes with `regression` set where the metric's threshold is reached."""
    counts = {name: sum(change.metric == name for change in changes) for name in METRICS}

    def reached(change: Change) -> bool:
        threshold = thresholds.get(change.metric)
        value = counts[change.metric] if METRICS[change.metric].counted else change.value
        return threshold is not None and value >= threshold

    return [replace(change, regression=reached(change)) for change in changes]


def thresholds_help() -> str:
    """The documented list of metrics for `compare --help`."""
    lines = [
        f"  {metric.name:<16} {'off' if metric.default is None else f'{metric.default:g}':>4}  {metric.help}"
        for metric in METRICS.values()
    ]
    heading = "metrics for --fail-on, with the default threshold:"
    return "\n".join([heading, *lines, "  (a metric that is named there and can't be compared fails)"])
