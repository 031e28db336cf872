"""The report in a terminal of 80 columns, ranked: verdict, what to change, which layers and why, then tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from precaudit.model import Layer, Report
from precaudit.reporting import DEFAULT_PLAN, costs, pasting, planned, ranges, unfinished
from precaudit.reporting.actions import actions, causes, counts, settlement
from precaudit.reporting.facts import notes
from precaudit.reporting.grouped import folded, unshown
from precaudit.reporting.headline import headline
from precaudit.reporting.page import Page
from precaudit.reporting.places import WHOLE, place
from precaudit.reporting.shown import as_shown
from precaudit.words import SHORT_FORMATS, listing, plural, prose, shorten, visible

ROWS = 16
LAYERS = 6
FORMATS = 4  # that lose values, the narrowest: more leave names no room


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
    plan: Path = DEFAULT_PLAN,
) -> str:
    """The whole report as text; `written` are files to name at the end, `plan` is where plan.json lies."""
    page, report = Page(color), as_shown(report)
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
    page.section("Gates and repairs", [] if gates else [planned.no_gates(report)])
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
        f"Gradients as they are {ranges.scaling(report)}.{ranges.masks(report)}"
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
    plan = next((path for path in written if path.name == DEFAULT_PLAN.name), plan)
    if not unfinished.is_empty(report):
        page.section("Paste this into your training script, after the model is built", [])
        lines = pasting.paste_lines(report, plan) or ["(nothing to paste: no plan that can be recommended)"]
        page.lines += [f"  {line}" for line in lines]
    page.lines.append("")
    if written:
        page.text(f"Written: {', '.join(visible(path) for path in written)}", hang="  ")
    page.command(*pasting.next_command(report, plan))
