"""A comparison as rows of visible text for all renderers, which add markup and escape it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from precaudit.catalogue.metrics import METRICS
from precaudit.comparison.changes import Change, Comparison
from precaudit.reporting.places import WHOLE
from precaudit.words import plural, prose, visible

Names = tuple[str, str]  # how base and head are called
_ENDS = re.compile(r" \([^()]* → [^()]*\)")
"""From where to where a tensor moved."""


@dataclass(frozen=True)
class Row:
    """A change of one tensor, layer or op, or of several that changed alike."""

    regression: bool
    metrics: tuple[str, ...]
    places: tuple[str, ...]
    what: str


def rows(comparison: Comparison) -> list[Row]:
    """Changes grouped by place, and places by how far they moved, in the rank of the first; from where to where is told
    if all agree."""
    alike: dict[tuple[bool, tuple[str, ...], str], dict[str, list[str]]] = {}
    for (regression, *_), group in groupby(comparison.changes, key=_place):
        changes = list(group)
        metrics = tuple(dict.fromkeys(change.metric for change in changes))
        what = "; ".join(prose(change.message) for change in changes)
        found = alike.setdefault((regression, metrics, _ENDS.sub("", what)), {})
        found.setdefault(what, []).append(place(changes[0]))
    return [
        Row(
            regression,
            metrics,
            tuple(chain.from_iterable(found.values())),
            next(iter(found)) if len(found) == 1 else moved,
        )
        for (regression, metrics, moved), found in alike.items()
    ]


def _place(change: Change) -> tuple[Any, ...]:
    """The key by which changes are grouped: movements of one tensor together, other metrics by themselves."""
    metric = None if METRICS[change.metric].family == "ranges" else change.metric
    return change.regression, change.fqn, change.op, change.role, change.name, metric


def place(change: Change) -> str:
    """`blocks.0.fc1:linear weight_grad (bias)`, as far as it is known."""
    name = f"({change.name})" if change.name not in ("", change.role) else None
    at = ":".join(filter(None, [WHOLE if change.fqn == "" else change.fqn, change.op]))
    return visible(" ".join(filter(None, [at, change.role, name]))) or "the whole job"


def title(comparison: Comparison) -> str:
    """The result in one line."""
    failed, changes = len(comparison.regressions), len(comparison.changes)
    matched = f"{plural(comparison.matched, 'layer')} matched"
    if any(reason.startswith("verdict:") for reason in comparison.not_comparable):
        matched += ", verdicts not compared"
    if not changes:
        return f"NOTHING WORSE beyond noise, {matched}"
    below = [f"{plural(changes - failed, 'change')} below the thresholds"] if changes > failed else []
    if comparison.clean:
        return ", ".join(["NO REGRESSION: " + below[0], matched])
    return ", ".join([f"REGRESSION: {plural(failed, 'change')}", *below, matched])


def notes(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """Notes below the changes, by heading."""
    sections = {"Measured otherwise": comparison.measured_otherwise, "Not compared": comparison.not_comparable}
    return {heading: lines for heading, lines in sections.items() if lines}


def failed_gates(comparison: Comparison) -> list[str]:
    """`METRIC:THRESHOLD` of every gate that failed, as `--fail-on` takes it."""
    metrics = dict.fromkeys(change.metric for change in comparison.regressions)
    return [f"{metric}:{comparison.thresholds.get(metric):g}" for metric in metrics]
