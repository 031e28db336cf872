"""Text for a terminal of 80 columns: wrapped paragraphs, tables, findings and commands."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tabulate import MIN_PADDING, tabulate

from precaudit.model import Finding
from precaudit.words import broken, inert, prose, shared_start, shorten, visible

STYLES = {"bold": "1", "dim": "2", "good": "1;32", "open": "1;33", "bad": "1;31", "error": "31", "warning": "33"}
OPTION, UNBROKEN = re.compile(r"(--[a-z][a-z-]*) (?=\S)"), "\xa0"  # its value stays on the same line


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
    shared = ".".join(shared_start(names[i].split(".") for i in starts))
    if len(starts) < 2 or all(len(names[start]) <= (end - start) * width for start, end in places):
        shared = ""
    if shared:
        names = [f"…{name.removeprefix(shared)}" if name else "" for name in names]
    fitted = [""] * len(names)
    for start, end in places:
        lines = [inert(line) for line in broken(inert(names[start]), width, end - start)]
        fitted[start : start + len(lines)] = lines
    return fitted, shared
