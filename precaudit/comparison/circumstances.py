"""Differences in the circumstances of two measurements, which may explain a change without the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from precaudit.model import Report


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


def _texts(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, list | tuple) else []


READ: Mapping[str, Callable[[Report], str]] = {
    "script": script,
    "arguments": lambda r: shlex.join(_texts(r.job["argv"])) or "none" if "argv" in r.job else "",
    "formats": lambda r: ", ".join(_texts(r.job.get("formats"))),
    "torch": lambda r: str(r.environment.get("torch") or ""),
    "verification": lambda r: "" if r.verification.verdict == "not_run" else str(r.verification.execution or ""),
}
