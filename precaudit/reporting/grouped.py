"""Groups findings with one cause: the modules of a stack take one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from precaudit.finding import ranked
from precaudit.model import Finding
from precaudit.words import listing, plural

NAMES = 3


@dataclass(frozen=True)
class Group:
    """`told` is the finding shown for all members: the first one's message, with the names of all."""

    told: Finding
    members: tuple[Finding, ...]


def grouped(findings: Iterable[Finding], apart: Callable[[Finding], object] = lambda finding: None) -> list[Group]:
    """Groups of findings, errors first. A group has one rule, operation, line and suggestion, and messages that differ
    in names and figures only; findings for which `apart` differs are never grouped."""
    groups: dict[object, list[Finding]] = {}
    for found in ranked(findings):
        cause = (found.rule, found.severity, found.op, found.location, found.suggestion, found.fqn is None)
        groups.setdefault((cause, _pattern(found), apart(found)), []).append(found)
    return [Group(_told(members), tuple(members)) for members in groups.values()]


def unshown(groups: Sequence[Group], shown: int) -> int:
    """How many findings are in the groups after the first `shown`."""
    return sum(len(group.members) for group in groups[shown:])


def _pattern(found: Finding) -> str:
    """What messages of one cause share: the text without figures, and without the module's name and what is attached to
    it. Messages about no module have one cause only where they are identical."""
    if not found.fqn:
        return found.message
    before, named, after = found.message.partition(found.fqn)
    said = before + re.sub(r"^[^\s:]*", "", after) if named else found.message
    return without_figures(said)


def without_figures(text: str) -> str:
    """The text without its numbers; `float16` is none."""
    return re.sub(r"(?<![\w.])[-+]?\d[\w.,+%-]*", "#", text)


def _told(members: list[Finding]) -> Finding:
    first, names = members[0], list(dict.fromkeys(found.fqn for found in members if found.fqn))
    if len(names) < 2:
        return first
    where = f"{listing(folded(names), NAMES)} ({plural(len(names), 'module')})"
    also = f"{first.message.rstrip('.')}; likewise in {plural(len(names) - 1, 'more module')}"
    return replace(first, fqn=where, message=also)


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in their numbers alone as one: `blocks.0-20.attn`."""
    parts = [tuple(name.split(".")) for name in names]
    for position in reversed(range(max(map(len, parts), default=0))):
        parts = _folded_at(parts, position)
    return [".".join(name) for name in parts]


def _folded_at(names: list[tuple[str, ...]], position: int) -> list[tuple[str, ...]]:
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for name in names:
        if position < len(name) and re.fullmatch("0|[1-9][0-9]*", name[position]):
            groups.setdefault((*name[:position], None, *name[position + 1 :]), []).append(int(name[position]))
        else:
            groups.setdefault(name, [])
    return [tuple(_spans(numbers) if part is None else part for part in name) for name, numbers in groups.items()]


def _spans(numbers: list[int]) -> str:
    """`3`, `0-20`, or `{0,2,4-6}`."""
    every = sorted(set(numbers))
    starts = [every[0], *(after for before, after in pairwise(every) if after != before + 1)]
    ends = [*(before for before, after in pairwise(every) if after != before + 1), every[-1]]
    spans = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return spans[0] if len(spans) == 1 else f"{{{','.join(spans)}}}"
