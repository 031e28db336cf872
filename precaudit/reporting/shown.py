"""What pages show of a report."""

from __future__ import annotations

from dataclasses import replace

from precaudit.model import Difference, Plan, Report
from precaudit.reporting import unfinished
from precaudit.reporting.facts import unsound


def is_withheld(report: Report) -> bool:
    """Whether float32 itself must be repaired before any plan can be judged."""
    return unsound(report) is not None and not unfinished.title(report)


def as_shown(report: Report) -> Report:
    """The report without its plan, and without what runs under it came to, where that is withheld."""
    if not is_withheld(report):
        return report
    v = replace(report.verification, execution=None, difference=Difference(), gates=(), repairs=(), reason="")
    return replace(report, plan=Plan(target=report.plan.target), verification=v)
