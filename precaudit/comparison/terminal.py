"""A comparison for people at a terminal, 80 columns wide."""

from __future__ import annotations

from tabulate import tabulate

from precaudit.comparison.changes import Comparison
from precaudit.comparison.rows import Names, failed_gates, notes, rows, title
from precaudit.reporting.page import Page
from precaudit.words import broken, inert, listing, shorten, visible

MAX_ROWS = 20
MAX_PLACES = 4
MAX_LINES = 4  # of one place
WHERE_WIDTH, WHAT_WIDTH = 28, 44  # beside a mark of four and two gaps of two


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
    cells = [["FAIL" if row.regression else "note", _places(row.places), inert(row.what)] for row in every[:MAX_ROWS]]
    widths = [None, WHERE_WIDTH, WHAT_WIDTH]
    lines = tabulate(cells, ["", "where", "what changed"], "simple", disable_numparse=True, maxcolwidths=widths)
    more = f"... and {len(every) - MAX_ROWS:,} more: see them all with -o compare.md or -o compare.json"
    return [*(inert(line.rstrip()) for line in lines.splitlines()), *([more] if len(every) > MAX_ROWS else [])]


def _places(places: tuple[str, ...]) -> str:
    named = listing((shorten(name, MAX_LINES * WHERE_WIDTH) for name in places), MAX_PLACES)
    return "\n".join(line.rstrip() for line in broken(inert(named), WHERE_WIDTH, 2 * MAX_PLACES * MAX_LINES))
