"""Renders a comparison as a pull-request comment. A bot finds and replaces its previous one by the hidden marker."""

from __future__ import annotations

from precaudit.comparison.changes import Comparison
from precaudit.comparison.rows import Names, failed_gates, notes, rows, title
from precaudit.reporting.markdown import bullets, code, collapsed, table, text
from precaudit.words import listing

MARKER = "<!-- precaudit:compare -->"
MAX_ROWS = 100
MAX_PLACES = 8


def render_markdown(comparison: Comparison, names: Names) -> str:
    base, head = map(code, names)
    every = rows(comparison)
    cells = [
        [
            "❌" if row.regression else "note",
            listing(row.places, MAX_PLACES, show=code),
            text(row.what),
            ", ".join(map(code, row.metrics)),
        ]
        for row in every[:MAX_ROWS]
    ]
    parts = [
        MARKER,
        f"## {'✅' if comparison.clean else '❌'} {text(title(comparison))}",
        f"{base} → {head}",
        table(["", "where", "what changed", "metric"], cells) if cells else "",
        f"... and {len(every) - MAX_ROWS:,} more in compare.json" if len(every) > MAX_ROWS else "",
        "" if comparison.clean else f"Failed: {', '.join(map(code, failed_gates(comparison)))}",
        *(collapsed(heading, bullets(lines)) for heading, lines in notes(comparison).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
