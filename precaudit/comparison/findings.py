"""A comparison as findings of a Report, for the renderers of annotations, SARIF and code quality."""

from __future__ import annotations

from dataclasses import replace

from precaudit.catalogue import COMPARED
from precaudit.comparison.changes import Change, Comparison
from precaudit.model import Finding, Location, Report, Verification

WHAT_TO_DO = "if the change is meant, profile again and commit the report as the new baseline"


def as_report(comparison: Comparison, head: Report) -> Report:
    """Head with its changes in place of its own findings and verdict, and of what cut it short."""
    job = {**head.job, "stopped": None}
    return replace(head, job=job, findings=tuple(as_findings(comparison, head)), verification=Verification())


def as_findings(comparison: Comparison, head: Report) -> list[Finding]:
    """Regressions as errors, other changes as notes, on the line that first called the layer's operation in head."""
    places: dict[tuple[str | None, str | None], Location] = {}
    for op in head.ops:
        if op.location is not None:
            places.setdefault((op.fqn, op.op), op.location)
            places.setdefault((op.fqn, None), op.location)
    return [_finding(change, places.get((change.fqn, change.op))) for change in comparison.changes]


def _finding(change: Change, location: Location | None) -> Finding:
    return Finding(
        rule=f"{COMPARED}{change.metric}",
        severity="error" if change.regression else "note",
        message=" ".join(filter(None, [change.role, change.name, change.message])),
        suggestion=WHAT_TO_DO if change.regression else "",
        fqn=change.fqn,
        op=change.op,
        location=location,
        evidence={"role": change.role, "base": change.base, "head": change.head, "value": change.value},
    )
