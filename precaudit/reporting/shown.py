"""What pages show of a report."""

from __future__ import annotations

from dataclasses import replace

from precaudit.model import Difference, Plan, Report
from precaudit.reporting import unfinished
from precaudit.reporting.facts import unsound


def as_shown(report: Report) -> Report:
    """The report without its plan, and without what runs under it came to, where float32 itself must be repaired first:
    nothing of that holds then."""
    if unsound(report) is None or unfinished.title(report):
        return report
    v = replace(report.verification, execution=None, difference=Difference(), gates=(), repairs=(), reason="")
    return replace(report, plan=Plan(target=report.plan.target), verification=v)
