"""A comparison for people at a terminal, 80 columns wide."""

from __future__ import annotations

from tabulate import tabulate

from precaudit.comparison.changes import Comparison
from precaudit.comparison.rows import failed_gates, rows, title
from precaudit.reporting.words import prose, shorten, visible

MAX_ROWS = 20
WIDTH = 80
MARK_WIDTH, WHERE_WIDTH, WHAT_WIDTH = 4, 28, 44  # and two gaps of two


def render_terminal(comparison: Comparison, names: tuple[str, str] = ("base", "head")) -> str:
    """The title, the changes in rank, what could not be compared and which gates failed."""
    base, head = (shorten(visible(name), WIDTH - 6) for name in names)
    lines = [title(comparison), f"base: {base}", f"head: {head}"]
    every = rows(comparison)
    if every:
        lines += ["", _table(comparison)]
    if len(every) > MAX_ROWS:
        lines.append(f"... and {len(every) - MAX_ROWS:,} more; write them all with -o compare.md or -o compare.json")
    if comparison.not_comparable:
        lines += ["", "Not compared:", *(f"- {prose(reason)}" for reason in comparison.not_comparable)]
    if not comparison.clean:
        lines += ["", f"Failed: {', '.join(failed_gates(comparison))}"]
    return "\n".join(lines)


def _table(comparison: Comparison) -> str:
    cells = [
        ["FAIL" if row.regression else "note", shorten(row.where, 2 * WHERE_WIDTH), row.what]
        for row in rows(comparison)[:MAX_ROWS]
    ]
    return tabulate(
        cells,
        headers=["", "where", "what changed"],
        tablefmt="simple",
        disable_numparse=True,
        maxcolwidths=[MARK_WIDTH, WHERE_WIDTH, WHAT_WIDTH],
    )
