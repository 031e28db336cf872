"""A comparison as rows of visible text: the one source of words for every renderer, which escapes and lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from precaudit.comparison.changes import Change, Comparison
from precaudit.comparison.metrics import METRICS
from precaudit.reporting.words import plural, prose, visible


@dataclass(frozen=True)
class Row:
    """Every change of one tensor, layer or op that has the same weight."""

    regression: bool
    metrics: tuple[str, ...]
    where: str
    what: str


def rows(comparison: Comparison) -> list[Row]:
    """Changes grouped by place, in their rank."""
    return [_row(list(group)) for _, group in groupby(comparison.changes, key=_place)]


def _place(change: Change) -> tuple[object, ...]:
    family = METRICS[change.metric].family
    tensor = change.role, change.name
    return change.regression, family, change.fqn, change.op, tensor, family == "ranges" or change.metric


def _row(changes: Sequence[Change]) -> Row:
    first = changes[0]
    place = ":".join(filter(None, (first.fqn, first.op)))
    tensor = [word for word in (first.role, first.name) if word]
    return Row(
        regression=first.regression,
        metrics=tuple(dict.fromkeys(change.metric for change in changes)),
        where=visible(" ".join([place, *tensor]).strip() or "the whole job"),
        what="; ".join(prose(change.message) for change in changes),
    )


def title(comparison: Comparison) -> str:
    """The answer in one line."""
    changes, matched = len(comparison.changes), plural(comparison.matched, "matched layer")
    if not comparison.changes:
        return f"NO CHANGE beyond noise in {matched}"
    if comparison.clean:
        return f"NO REGRESSION: {plural(changes, 'change')} below the thresholds, {matched}"
    return f"REGRESSION: {len(comparison.regressions)} of {plural(changes, 'change')} fail, {matched}"


def failed_gates(comparison: Comparison) -> list[str]:
    """`METRIC:THRESHOLD` of every gate that failed, as `--fail-on` takes it."""
    metrics = dict.fromkeys(change.metric for change in comparison.regressions)
    return [f"{metric}:{comparison.thresholds.get(metric):g}" for metric in metrics]
