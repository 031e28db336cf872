"""Renders a check as a pull-request comment. A bot finds and replaces its previous one by the hidden marker."""

from __future__ import annotations

from precaudit.checking import story
from precaudit.checking.records import CheckReport
from precaudit.reporting.grouped import grouped, unshown
from precaudit.reporting.markdown import SIGNS, bullets, code, collapsed, findings_table, table, text

MARKER = "<!-- precaudit:check -->"
MAX_ROWS = 100
MARKS = {"passed": "✅", "warned": "⚠️", "failed": "❌", "not measured": "not measured"}


def render_markdown(report: CheckReport) -> str:
    answers = [
        [MARKS[answer.status], text(story.question(report, answer)), text(answer.detail)] for answer in report.answers
    ]
    skipped = story.skipped(report)
    parts = [
        MARKER,
        f"## {SIGNS[story.tone(report)]} {text(story.title(report))}",
        f"{code(report.job.get('plan', 'plan.json'))}, {code(report.job.get('script') or 'SCRIPT')}",
        table(["", "question", "answer"], answers),
        _findings(report),
        _table("Outputs against float32", story.OUTPUT_HEADERS, story.output_rows(report.outputs)),
        _table("Hard inputs", story.HARD_HEADERS, story.hard_rows(report.hard_inputs)),
        collapsed("Not tried", bullets(skipped)) if skipped else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _findings(report: CheckReport) -> str:
    groups = grouped(report.findings)
    more = unshown(groups, MAX_ROWS)
    rest = f"\n\n... and {more:,} more in check.json" if more else ""
    return findings_table(groups[:MAX_ROWS]) + rest if groups else ""


def _table(heading: str, headers: tuple[str, ...], rows: list[list[str]]) -> str:
    cells = [[text(cell) for cell in row] for row in rows[:MAX_ROWS]]
    return collapsed(heading, table(headers, cells)) if cells else ""
