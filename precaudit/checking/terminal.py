"""A check for people at a terminal, 80 columns wide: the verdict, the questions, what to do."""

from __future__ import annotations

from precaudit.checking import story
from precaudit.checking.records import CheckReport
from precaudit.reporting.grouped import grouped, unshown
from precaudit.reporting.page import Page
from precaudit.reporting.places import place
from precaudit.words import prose, visible

LABELS = {"passed": "pass", "warned": "warn", "failed": "FAIL", "not measured": "?"}
STYLES = {"passed": "good", "warned": "open", "failed": "bad", "not measured": "open"}


def render_terminal(report: CheckReport, color: bool = False) -> str:
    page = Page(color)
    script = visible(report.job.get("script") or "SCRIPT")
    page.text(f"precaudit {report.precaudit_version}: check {visible(report.job.get('plan', ''))}, {script}", "dim")
    page.lines.append("")
    page.text(story.title(report), story.tone(report))
    page.lines.append("")
    for answer in report.answers:
        label, name = LABELS[answer.status], story.question(report, answer)
        page.text(f"{label:<4}  {name}: {prose(answer.detail)}", "", indent="  ", hang="        ")
    _findings(page, report)
    _tables(page, report)
    return str(page)


def _findings(page: Page, report: CheckReport) -> None:
    groups = grouped(report.findings)
    if groups:
        page.section("Findings, and what to do", [])
    for group in groups[: story.ROWS]:
        where = place(group.told)
        page.finding(group.told, f" {where}" if where else "")
    if more := unshown(groups, story.ROWS):
        page.text(f"... and {more:,} more: see them all with -o check.json", indent="  ")


def _tables(page: Page, report: CheckReport) -> None:
    if report.outputs:
        page.section(f"Outputs against float32 ({report.execution})", [])
        page.table([*story.OUTPUT_HEADERS], story.output_rows(report.outputs)[: story.ROWS])
    if report.hard_inputs:
        page.section("Hard inputs, made from the last batch", [])
        page.table([*story.HARD_HEADERS], story.hard_rows(report.hard_inputs)[: story.ROWS])
        for reason in story.skipped(report):
            page.text(f"not tried: {reason}", indent="  ", hang="    ")
