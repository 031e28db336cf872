"""A report at the end of a notebook cell: the verdict and the plan in a few lines of HTML."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from precaudit.model import Report
from precaudit.reporting import pasting, planned
from precaudit.reporting.actions import actions
from precaudit.reporting.grouped import folded
from precaudit.reporting.headline import headline
from precaudit.reporting.shown import as_shown
from precaudit.words import listing

COLORS = {"good": "#1a7f37", "open": "#9a6700", "bad": "#cf222e"}


def summary_html(report: Report) -> str:
    """A small fragment without scripts; every name from the report is escaped."""
    report = as_shown(report)
    head = headline(report)
    return (
        f'<div style="border-left:4px solid {COLORS[head.tone]};padding:.2em 1em;max-width:60em">'
        f'<p style="font-weight:600;color:{COLORS[head.tone]}">{escape(head.title)}</p>'
        f"{_list(head.details)}"
        f"<p><b>What to change</b></p>{_list(actions(report)[:5])}"
        f"<p><b>{escape(planned.plan_default(report))}</b></p>{_list(_exceptions(report))}"
        f"{_code(pasting.paste_lines(report))}</div>"
    )


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _exceptions(report: Report) -> list[str]:
    return [
        f"{group.format}: {group.why} ({listing(folded(group.names))})" for group in planned.exceptions(report.plan)[:8]
    ]


def _code(lines: list[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
