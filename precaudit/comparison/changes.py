"""The results of a comparison: frozen records, ranked, each with its threshold's decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Scalar = str | int | float | None


@dataclass(frozen=True)
class Change:
    """One difference between base and head.

    `value` is in the metric's unit and never negative: larger is worse or further away. `fqn` is the name in
    head, or in base where the layer is gone. `regression` says that the metric's threshold was reached.
    """

    metric: str
    value: float
    message: str
    fqn: str | None = None
    op: str | None = None
    role: str | None = None
    name: str = ""
    base: Scalar = None
    head: Scalar = None
    regression: bool = False


@dataclass(frozen=True)
class Comparison:
    """All differences beyond noise (the worst and most likely cause first), what could not be compared, and how the
    circumstances of the measurements differ."""

    changes: tuple[Change, ...] = ()
    not_comparable: tuple[str, ...] = ()
    measured_otherwise: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    matched: int = 0
    thresholds: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regression)

    @property
    def clean(self) -> bool:
        """No change reached its threshold; changes that only inform may exist."""
        return not self.regressions
