"""Places in the script and the model, as reports name them."""

from __future__ import annotations

from precaudit.model import PACKAGES, Finding
from precaudit.words import visible

WHOLE = "(the model itself)"


def place(finding: Finding) -> str:
    """`module, op, path:line`, as far as known."""
    location = finding.location
    parts = [named(finding), finding.op, f"{short_file(location.path)}:{location.line}" if location else None]
    return ", ".join(visible(part) for part in parts if part)


def named(finding: Finding) -> str | None:
    """The module's name, also of the one that has none, the outermost."""
    return WHOLE if finding.fqn == "" else finding.fqn


def short_file(path: str) -> str:
    """The file's path; for an installed library the part below site-packages."""
    return PACKAGES.split(path)[-1]


def installed(path: str) -> bool:
    return PACKAGES.search(path) is not None
