"""The report in a terminal of 80 columns, ranked: verdict, what to change, which layers and why, then tables."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TextIO

from tabulate import MIN_PADDING, tabulate

from precaudit.model import Finding, Layer, Report
from precaudit.reporting import costs, pasting, planned, ranges, unfinished
from precaudit.reporting.actions import actions, causes, counts, settlement
from precaudit.reporting.facts import notes
from precaudit.reporting.grouped import folded, unshown
from precaudit.reporting.headline import headline
from precaudit.reporting.places import WHOLE, place
from precaudit.words import (
    SHORT_FORMATS,
    broken,
    inert,
    listing,
    plural,
    prose,
    shorten,
    visible,
)

STYLES = {"bold": "1", "dim": "2", "good": "1;32", "open": "1;33", "bad": "1;31", "error": "31", "warning": "33"}
ROWS = 16
LAYERS = 6
FORMATS = 4  # that lose values, the narrowest: more leave names no room
OPTION, UNBROKEN = re.compile(r"(--[a-z][a-z-]*) (?=\S)"), "\xa0"  # its value stays on the same line


def use_color(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """NO_COLOR beats FORCE_COLOR beats whether the stream is a terminal."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] != "0"
    return stream.isatty() and environ.get("TERM") != "dumb"


def render_terminal(
    report: Report,
    color: bool = False,
    written: Sequence[Path] = (),
    plan: Path = pasting.DEFAULT_PLAN,
) -> str:
    """The whole report as text; `written` are files to name at the end, `plan` is where plan.json lies."""
    page = Page(color)
    _verdict(page, report)
    page.section("What to change", [f"{i}. {step}" for i, step in enumerate(actions(report), 1)])
    if not unfinished.is_empty(report):
        _measurements(page, report)
    if remarks := notes(report):
        page.section("Notes", remarks)
    _ending(page, report, written, plan)
    return str(page)


def _measurements(page: Page, report: Report) -> None:
    _exceptions(page, report)
    page.section("Loss scale", planned.loss_scale(report))
    _findings(page, report)
    _gates(page, report)
    _ranges(page, report)
    page.section("Tensor Cores", costs.tensor_cores(report))
    page.section("Time and cost", costs.time_and_money(report))


class Page:
    """Lines of at most `width` columns; wrapped before they are painted, so that colour adds no width."""

    def __init__(self, color: bool = False, width: int = 80) -> None:
        self.color = color
        self.width = width
        self.lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.color and style in STYLES else text

    def text(self, text: str, style: str = "", indent: str = "", hang: str | None = None) -> None:
        hang = indent if hang is None else hang
        whole = OPTION.sub(rf"\1{UNBROKEN}", inert(text))
        wrapped = textwrap.wrap(
            whole, self.width, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False
        )
        lines = [line.replace(UNBROKEN, " ") for line in wrapped]
        self.lines += [self.paint(inert(line), style) for line in lines]  # a word too long is broken anywhere

    def section(self, title: str, lines: Iterable[str]) -> None:
        self.lines.append("")
        self.text(title, "bold")
        for line in lines:
            self.text(line, indent="  ", hang="    ")

    def table(self, headers: list[str], rows: list[list[str]], texts: int = 2) -> None:
        """A table indented by two; the first column gives way until it fits, then the second: a name goes on in the
        rows below it that have none, and is cut where they end. Behind the first `texts` columns are numbers."""
        columns = list(zip(headers, *rows, strict=True))[1:]
        second, *others = (max(len(cells[0]) + MIN_PADDING, *map(len, cells)) for cells in columns)
        room = self.width - 2 - second - sum(others) - 2 * len(columns)
        least = len(headers[0]) + MIN_PADDING
        names, shared = _fitted([row[0] for row in rows], max(least, room))
        second = max(1, second + min(0, room - least))
        rows = [[name, shorten(row[1], second), *row[2:]] for name, row in zip(names, rows, strict=True)]
        align = [*["left"] * texts, *["right"] * (len(headers) - texts)]
        text = tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)
        self.lines += [f"  {line}".rstrip() for line in text.splitlines()]
        if shared:
            self.text(f"… is {shared}", indent="  ")

    def finding(self, finding: Finding, where: str) -> None:
        self.text(f"{finding.severity} {visible(finding.rule)}{where}", finding.severity, indent="  ", hang="    ")
        self.text(prose(finding.message), indent="    ")
        if finding.suggestion:
            self.text(f"-> {prose(finding.suggestion)}", indent="    ", hang="       ")

    def command(self, label: str, arguments: Sequence[str]) -> None:
        """A command line, continued as a shell continues it; an argument is never broken, for it will be copied."""
        lines = [label]
        for argument in arguments:
            if len(lines[-1]) + len(argument) + 3 > self.width:
                lines[-1] += " \\"
                lines.append(" ")
            lines[-1] += f" {argument}"
        self.lines += lines


def _fitted(names: list[str], width: int) -> tuple[list[str], str]:
    """Each name in the rows up to the next one; where one is too long, without the parts that all begin with, which are
    returned too."""
    starts = [i for i, name in enumerate(names) if name or not i]
    places = list(pairwise([*starts, len(names)]))
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*(names[i].split(".") for i in starts), strict=False))
    shared = ".".join(parts[0] for parts in alike)
    if len(starts) < 2 or all(len(names[start]) <= (end - start) * width for start, end in places):
        shared = ""
    if shared:
        names = [f"…{name.removeprefix(shared)}" if name else "" for name in names]
    fitted = [""] * len(names)
    for start, end in places:
        lines = [inert(line) for line in broken(inert(names[start]), width, end - start)]
        fitted[start : start + len(lines)] = lines
    return fitted, shared


def _verdict(page: Page, report: Report) -> None:
    head = headline(report)
    version = f"precaudit {visible(report.precaudit_version)}".rstrip()
    page.text(f"{version}: {' '.join(pasting.script(report))}", "dim")
    page.lines.append("")
    page.text(head.title, head.tone)
    for detail in head.details:
        page.text(detail, indent="  ", hang="    ")


def _exceptions(page: Page, report: Report) -> None:
    groups = planned.exceptions(report.plan)
    page.section("Which layers, and why", [planned.plan_default(report)])
    for group in groups[:ROWS]:
        page.text(f"{group.format}: {group.why}", indent="  ", hang="    ")
        page.text(listing(folded(group.names), show=lambda name: shorten(name, page.width - 8)), indent="      ")
    if len(groups) > ROWS:
        page.text(f"... and {plural(len(groups) - ROWS, 'more reason')} in plan.json", indent="  ")


def _findings(page: Page, report: Report) -> None:
    groups = causes(report)
    if not groups:
        page.section("Findings", [f"None: {unfinished.no_findings(report)}."])
        return
    page.section(f"Findings: {', '.join(counts(report))}", [])
    for group in groups[:ROWS]:
        where = place(group.told) or "the whole model"
        page.finding(group.told, f" {where}{settlement(report.plan, group.members[0])}")
    if more := unshown(groups, ROWS):
        page.text(f"... and {more:,} more in report.json", indent="  ")


def _gates(page: Page, report: Report) -> None:
    gates = report.verification.gates
    page.section("Gates and repairs", [] if gates else [planned.NO_GATES])
    for gate in gates:
        if not gate.passed:
            page.text(f"FAILED {prose(gate.name)}: {prose(gate.detail)}", "error", indent="  ", hang="    ")
    if passed := [prose(gate.name) for gate in gates if gate.passed]:
        page.text(f"{len(passed)} passed: {', '.join(passed)}", indent="  ", hang="    ")
    for line in planned.repairs(report):
        page.text(line, indent="  ", hang="    ")


# ---------------------------------------------------------------- tables


def _ranges(page: Page, report: Report) -> None:
    layers = ranges.ranked_layers(report)
    if not layers:
        page.section("Ranges", [ranges.NO_LAYERS])
        return
    safe, formats = ranges.lossless_formats(report)
    formats = formats[-FORMATS:]
    rows = [row for layer in layers[:LAYERS] for row in _layer_rows(layer, formats)]
    lines = [
        "Share of the values that each format loses: to zero, or by overflow where marked !. "
        "Gradients as they are before any loss scale."
    ]
    if safe:
        lines.append(f"Nothing anywhere is lost in {listing(safe, len(safe))}.")
    page.section(f"Ranges of {plural(len(layers), 'layer')}, those most at risk first", lines)
    page.lines.append("")
    page.table(["layer", "role", "amax", "smallest", *(SHORT_FORMATS.get(f, visible(f)[:5]) for f in formats)], rows)
    if len(layers) > LAYERS:
        page.text(f"... and {plural(len(layers) - LAYERS, 'more layer')} in the HTML and JSON reports", indent="  ")


def _layer_rows(layer: Layer, formats: list[str]) -> list[list[str]]:
    """Its name stands in the first row only."""
    name = visible(layer.fqn) or WHOLE
    return [["" if i else name, *cells] for i, (_, *cells) in enumerate(ranges.rows([layer], formats, "!"))]


# ---------------------------------------------------------------- what to do with it


def _ending(page: Page, report: Report, written: Sequence[Path], plan: Path) -> None:
    plan = next((path for path in written if path.name == pasting.DEFAULT_PLAN.name), plan)
    if not unfinished.is_empty(report):
        page.section("Paste this into your training script, after the model is built", [])
        lines = pasting.paste_lines(report, plan) or ["(nothing to paste: no plan that can be recommended)"]
        page.lines += [f"  {line}" for line in lines]
    page.lines.append("")
    if written:
        page.text(f"Written: {', '.join(visible(path) for path in written)}", hang="  ")
    page.command(*pasting.next_command(report, plan))
