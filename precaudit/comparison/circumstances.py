"""Differences in the circumstances of two measurements, which may explain a change without the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from precaudit.model import Report
from precaudit.reporting.facts import listed


def path(report: Report) -> str:
    return str(report.job.get("script") or "")


def script(report: Report) -> str:
    """The script's file name: a script in another folder is the same script."""
    return Path(path(report)).name


def differences(base: Report, head: Report) -> Iterator[str]:
    """The circumstances that differ, among those that both reports have."""
    for what, read in READ.items():
        old, new = read(base), read(head)
        if old and new and old != new:
            yield f"{what}: {old} in base, {new} in head"


def _arguments(report: Report) -> str:
    return shlex.join(map(str, listed(report, "argv"))) or "none" if "argv" in report.job else ""


def _execution(report: Report) -> str:
    return "" if report.verification.verdict == "not_run" else str(report.verification.execution or "")


READ: Mapping[str, Callable[[Report], str]] = {
    "script": script,
    "arguments": _arguments,
    "formats": lambda report: ", ".join(map(str, listed(report, "formats"))),
    "torch": lambda report: str(report.environment.get("torch") or ""),
    "verification": _execution,
}
