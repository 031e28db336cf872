"""GitHub Actions: annotations on source lines, and the step summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from precaudit.errors import PrecauditError
from precaudit.model import Finding, Report
from precaudit.reporting.grouped import grouped
from precaudit.reporting.places import named
from precaudit.reporting.results import results, sentence, where, workspace_path
from precaudit.words import plural, visible

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
# the host shows this many annotations of a level for a step
SHOWN = 10
# summaries above 1 MiB are dropped whole
SUMMARY_BYTES = 900_000
CUT = "\n\n*(cut here: the report is longer than a step summary may be)*\n"


def in_actions(environ: Mapping[str, str]) -> bool:
    return environ.get("GITHUB_ACTIONS") == "true"


def render_github(report: Report) -> str:
    """Annotations for a report, a line each; a notice where there is nothing to say."""
    return "".join(f"{line}\n" for line in annotate(results(report), report))


def annotate(findings: Iterable[Finding], report: Report) -> list[str]:
    """Workflow commands, the most severe first, one for each cause; the last one shown of a level says how many more
    there are."""
    lines = []
    every = [group.told for group in grouped(findings)]
    for severity in COMMANDS:
        chosen = [finding for finding in every if finding.severity == severity]
        rest = len(chosen) - SHOWN
        for i, finding in enumerate(chosen[:SHOWN]):
            more = f" (and {plural(rest, f'more {severity}')} in the report)" if rest > 0 and i == SHOWN - 1 else ""
            lines.append(_annotation(finding, report, more))
    return lines or ["::notice title=precaudit::no findings"]


def _annotation(finding: Finding, report: Report, more: str) -> str:
    path, line = where(finding, report)
    title = " ".join(filter(None, [finding.rule, named(finding)]))
    file = _property(workspace_path(path))
    text = sentence(finding)
    return f"::{COMMANDS[finding.severity]} file={file},line={line},title={_property(title)}::{_data(text)}{more}"


def _data(text: str) -> str:
    """The host's escapes; what is invisible is escaped by us before."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def write_step_summary(markdown: str, environ: Mapping[str, str] = os.environ) -> None:
    """Append to the step's summary, cut at a line so that the host keeps it."""
    if not in_actions(environ) or not environ.get("GITHUB_STEP_SUMMARY"):
        return
    path = Path(environ["GITHUB_STEP_SUMMARY"])
    try:
        room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
        with path.open("ab") as file:
            file.write(cut(markdown, room).encode())
    except OSError as error:
        raise PrecauditError(f"{path}: can't write the step summary: {error.strerror or error}") from error


def cut(markdown: str, limit: int) -> str:
    """The text within `limit` bytes of UTF-8, whole lines, and a sentence that says so."""
    content = markdown.encode("utf-8", "backslashreplace")
    if len(content) <= limit:
        return content.decode()
    kept = content[: max(0, limit - len(CUT.encode()))].decode("utf-8", "ignore")
    return (kept.rpartition("\n")[0] + CUT) if limit > len(CUT.encode()) else ""
