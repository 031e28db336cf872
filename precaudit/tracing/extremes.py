"""Associative combination of measures that may be missing (None)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

Range = tuple[float, float]


def largest(values: Iterable[float | None]) -> float | None:
    """The largest measured value; None where there is none."""
    return max((value for value in values if value is not None), default=None)


def largest_by_name(measures: Collection[Mapping[str, float]]) -> dict[str, float]:
    """The largest value for each name; a missing one counts as 0."""
    names = dict.fromkeys(name for measure in measures for name in measure)
    return {name: max(measure.get(name, 0.0) for measure in measures) for name in names}


def widest(ranges: Iterable[Range | None]) -> Range | None:
    """The union of the measured ranges; None where there is none."""
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
