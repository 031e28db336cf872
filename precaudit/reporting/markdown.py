"""Markdown for a pull-request comment: ranked, short, with a hidden marker by which a bot finds it again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from precaudit.errors import PrecauditError
from precaudit.model import Report
from precaudit.reporting import DEFAULT_PLAN, costs, pasting, planned, ranges, svg, unfinished
from precaudit.reporting.actions import actions, causes, settlement
from precaudit.reporting.files import write_each, write_text
from precaudit.reporting.grouped import Group, folded
from precaudit.reporting.headline import headline
from precaudit.reporting.places import WHOLE, place
from precaudit.reporting.shown import as_shown
from precaudit.words import SHORT_FORMATS, listing, plural, prose, visible

MARKER = "<!-- precaudit:report -->"
SIGNS = {"good": "✅", "open": "⚠️", "bad": "❌"}
ROWS = 25
LAYERS = 10
LONGEST = 400
# pictures by name, and what they show for whoever can't see them
ALTERNATIVES = {
    "training": "Loss curves of all training runs, and the differences between the plan and float32",
    "ranges": "Share of values by layer and exponent, with the range of a half format",
    "times": "GPU time of each layer by Tensor Core class, in float32 and with the plan",
}
NO_PICTURES: Mapping[str, Path] = MappingProxyType({})


def text(value: object) -> str:
    """Prose that can't become markup, a link, a mention, a reference or a table cell: the signs become entities."""
    line = prose(value)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    line = re.sub(r"[&<>\\`*_\[\]|~#@$]|:(?=//)|(?<=www)\.", lambda match: f"&#{ord(match[0])};", line)
    return re.sub(r"^([-+=]|\d+(?=[.)](?:\s|$)))", lambda match: f"&#{ord(match[0][0])};{match[0][1:]}", line)


def code(value: object) -> str:
    """A name in a code span; names with signs that end one are spelled with entities."""
    name = visible(value)[:LONGEST]
    if not name.strip() or re.search(r"[`|<>&\\]", name):
        return text(value)
    return f"`{name}`"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {text(line)}" for line in lines)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def collapsed(title: str, body: str) -> str:
    """A section that opens when its title is clicked."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def render_markdown(report: Report, pictures: Mapping[str, Path] = NO_PICTURES, plan: Path = DEFAULT_PLAN) -> str:
    """`pictures` are files beside the text, by the section that each illustrates."""
    report = as_shown(report)
    head = headline(report)
    parts = [
        MARKER,
        f"## {SIGNS[head.tone]} {text(head.title)}",
        f"{code(' '.join(pasting.script(report)))}",
        bullets(head.details),
        _picture(pictures, "training"),
        f"### What to change\n\n{bullets(actions(report)[:ROWS])}",
        _usage(report, plan),
        f"### Which layers, and why\n\n{_exceptions(report)}",
        f"### Loss scale\n\n{bullets(planned.loss_scale(report))}",
        f"### Findings\n\n{_findings(report)}",
        f"### Gates and repairs\n\n{_gates(report)}",
        _picture(pictures, "ranges"),
        collapsed(f"Ranges of {plural(len(report.layers), 'layer')}", _ranges(report)),
        _picture(pictures, "times"),
        collapsed("Tensor Cores, time and cost", bullets([*costs.tensor_cores(report), *costs.time_and_money(report)])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(pictures: Mapping[str, Path], name: str) -> str:
    return f"![{ALTERNATIVES[name]}]({quote(pictures[name].name)})" if name in pictures else ""


def write_markdown(report: Report, path: Path, plan: Path) -> None:
    """The text, and beside it the pictures that it links to, where they can be drawn. One that can't be written costs
    neither the text nor the others."""
    drawn = {} if path.exists() and not path.is_file() else svg.pictures(report)  # a pipe has nothing beside it
    names = {file: name for name, file in picture_files(path).items() if name in drawn}
    written, problems = write_each(names, lambda file: write_text(file, drawn[names[file]]))
    write_text(path, render_markdown(report, {names[file]: file for file in written}, plan))
    if problems:
        raise PrecauditError(f"{'; '.join(problems)} ({path} was written, without that picture)")


def picture_files(path: Path) -> dict[str, Path]:
    """Where the pictures of a Markdown file lie."""
    return {name: path.with_name(f"{path.stem}-{name}.svg") for name in ALTERNATIVES}


def _exceptions(report: Report) -> str:
    groups = planned.exceptions(report.plan)
    default = text(planned.plan_default(report))
    if not groups:
        return default
    rows = [
        [code(g.format), text(g.why), f"{len(g.names):,}", listing(folded(g.names), show=code)] for g in groups[:ROWS]
    ]
    return f"{default}\n\n{table(['format', 'why', 'count', 'modules and ops'], rows)}{_more(groups, 'reason')}"


def _more(rows: Sequence[object], noun: str, most: int = ROWS) -> str:
    return f"\n\n... and {plural(len(rows) - most, f'more {noun}')}" if len(rows) > most else ""


def _findings(report: Report) -> str:
    groups = causes(report)
    if not groups:
        return f"None: {unfinished.no_findings(report)}."
    rest = [finding for group in groups[ROWS:] for finding in group.members]
    settled = (settlement(report.plan, group.members[0]) for group in groups)
    return findings_table(groups[:ROWS], settled) + _more(rest, "finding", 0)


def findings_table(groups: Iterable[Group], settlements: Iterable[str] = repeat("")) -> str:
    """A row for each group; its settlement stands behind its severity."""
    rows = [
        [
            finding.severity + settlement,
            code(finding.rule),
            code(place(finding)) if place(finding) else "the whole model",
            text(finding.message),
            text(finding.suggestion),
        ]
        for finding, settlement in zip((group.told for group in groups), settlements, strict=False)
    ]
    return table(["severity", "rule", "where", "what", "what to do"], rows)


def _gates(report: Report) -> str:
    v = report.verification
    if not v.gates:
        return planned.no_gates(report)
    gates = [
        f"- {'passed' if gate.passed else '**FAILED**'} {text(gate.name)}: {text(gate.detail)}"
        for gate in sorted(v.gates, key=lambda gate: gate.passed)
    ]
    return "\n".join([*gates[:ROWS], *(f"- {text(line)}" for line in planned.repairs(report)[:ROWS])])


def _ranges(report: Report) -> str:
    layers = ranges.ranked_layers(report)
    if not layers:
        return ranges.NO_LAYERS
    formats = ranges.audited_formats(report)[:6]
    rows = [
        [code(fqn or WHOLE), text(label), *cells] for fqn, label, *cells in ranges.rows(layers[:LAYERS], formats, " !")
    ]
    headers = ["layer", "role", "amax", "smallest", *(text(SHORT_FORMATS.get(name, name)) for name in formats)]
    note = f"Share of the values that each format loses, to zero or (!) by overflow, {ranges.scaling(report)}."
    note += ranges.masks(report)
    return f"{note}\n\n{table(headers, rows)}{_more(layers, 'layer', LAYERS)}"


def _usage(report: Report, plan: Path) -> str:
    lines = pasting.paste_lines(report, plan)
    return "### Use it\n\n```python\n" + "\n".join(lines) + "\n```" if lines else ""
