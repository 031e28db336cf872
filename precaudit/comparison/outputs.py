"""The output formats of a comparison and a trend."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from precaudit import reporting
from precaudit.catalogue import COMPARED
from precaudit.comparison.changes import Change, Comparison
from precaudit.comparison.rows import Names, failed_gates, notes, rows, title
from precaudit.errors import PrecauditError
from precaudit.model import Finding, Location, Report, Verification
from precaudit.reporting.markdown import bullets, code, folded, table, text
from precaudit.reporting.serialize import indented, to_json
from precaudit.reporting.terminal import Page
from precaudit.words import inert, listing, shorten, visible

if TYPE_CHECKING:
    import pandas as pd


SCHEMA_VERSION = 1
MARKER = "<!-- precaudit:compare -->"
"""By which a bot finds its previous comment, to replace it."""
WHAT_TO_DO = "if the change is meant, profile again and commit the report as the new baseline"
TERMINAL_ROWS, TERMINAL_PLACES = 20, 4
COMMENT_ROWS, COMMENT_PLACES = 100, 8
WHERE_WIDTH, WHAT_WIDTH = 28, 44  # beside a mark of four and two gaps of two


def format_of(path: Path, formats: Collection[str]) -> str:
    """The format that the extension picks, if it is one of `formats`."""
    name = "csv" if path.suffix.lower() == ".csv" else reporting.format_of(path)
    if name not in formats:
        raise PrecauditError(f"{path}: can't be written as {name} here; what can be is {', '.join(formats)}")
    return name


def render(comparison: Comparison, format: str, names: Names, head: Report, color: bool = False) -> str:
    if format == "json":
        heading = {"schema_version": SCHEMA_VERSION, "base": names[0], "head": names[1], "clean": comparison.clean}
        return indented(to_json(heading) | to_json(comparison))
    if format == "markdown":
        return render_markdown(comparison, names)
    if format == "terminal":
        return render_terminal(comparison, names, color)
    return reporting.render(as_report(comparison, head), format)


def render_trend(frame: pd.DataFrame, format: str) -> str:
    from precaudit.comparison import trend

    if format == "json":
        return indented(to_json(frame.astype(object).where(frame.notna(), None).to_dict(orient="records")))
    if format == "csv":
        return frame.to_csv(index=False)
    if format == "svg":
        from precaudit.comparison.trendpicture import render_svg

        return render_svg(frame)
    return trend.markdown(frame) if format == "markdown" else trend.terminal(frame)


# ---------------------------------------------------------------- as findings, for annotations, SARIF and code quality


def as_report(comparison: Comparison, head: Report) -> Report:
    """Head with its changes in place of its own findings and verdict."""
    return replace(head, findings=tuple(as_findings(comparison, head)), verification=Verification())


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


# ---------------------------------------------------------------- in a terminal of 80 columns


def render_terminal(comparison: Comparison, names: Names, color: bool = False) -> str:
    """The answer, the changes in rank, what could not be compared, and which gates failed."""
    page = Page(color)
    page.text(title(comparison), "good" if comparison.clean else "bad")
    for side, name in zip(("base", "head"), names, strict=True):
        page.lines.append(f"  {side}: {shorten(visible(name), page.width - 8)}")
    if comparison.changes:
        page.lines += ["", *_table(comparison)]
    for heading, lines in notes(comparison).items():
        page.section(heading, [inert(visible(line)) for line in lines])
    if not comparison.clean:
        page.section(f"Failed: {', '.join(failed_gates(comparison))}", [])
        page.text("If the change is meant, keep head as the new baseline; --fail-on METRIC:off silences a metric.")
    return str(page)


def _table(comparison: Comparison) -> list[str]:
    every = rows(comparison)
    cells = [
        [
            "FAIL" if row.regression else "note",
            inert(listing((shorten(name, 2 * WHERE_WIDTH) for name in row.places), TERMINAL_PLACES)),
            inert(row.what),
        ]
        for row in every[:TERMINAL_ROWS]
    ]
    widths = [None, WHERE_WIDTH, WHAT_WIDTH]
    lines = tabulate(cells, ["", "where", "what changed"], "simple", disable_numparse=True, maxcolwidths=widths)
    more = f"... and {len(every) - TERMINAL_ROWS:,} more: see them all with -o compare.md or -o compare.json"
    return [*(inert(line.rstrip()) for line in lines.splitlines()), *([more] if len(every) > TERMINAL_ROWS else [])]


# ---------------------------------------------------------------- as a pull-request comment


def render_markdown(comparison: Comparison, names: Names) -> str:
    base, head = map(code, names)
    every = rows(comparison)
    cells = [
        [
            "❌" if row.regression else "note",
            listing(row.places, COMMENT_PLACES, show=code),
            text(row.what),
            ", ".join(map(code, row.metrics)),
        ]
        for row in every[:COMMENT_ROWS]
    ]
    parts = [
        MARKER,
        f"## {'✅' if comparison.clean else '❌'} {text(title(comparison))}",
        f"{base} → {head}",
        table(["", "where", "what changed", "metric"], cells) if cells else "",
        f"... and {len(every) - COMMENT_ROWS:,} more in compare.json" if len(every) > COMMENT_ROWS else "",
        "" if comparison.clean else f"Failed: {', '.join(map(code, failed_gates(comparison)))}",
        *(folded(heading, bullets(lines)) for heading, lines in notes(comparison).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
