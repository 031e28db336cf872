"""Reports over time: one row for each report, compared with earlier ones of the same script."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from precaudit.comparison import circumstances
from precaudit.comparison.compare import compare
from precaudit.comparison.matching import match_layers
from precaudit.comparison.rows import place
from precaudit.comparison.speed import native_share
from precaudit.comparison.thresholds import DEFAULTS
from precaudit.comparison.trend_summary import summary
from precaudit.errors import PrecauditError, require
from precaudit.model import Report
from precaudit.reporting import markdown as md
from precaudit.reporting import unfinished
from precaudit.reporting.facts import figures, from_python
from precaudit.reporting.page import Page
from precaudit.reporting.serialize import load_report
from precaudit.words import plural, prose, seconds, share, visible

Entry = tuple[str, datetime, Report]


def load_folder(folder: Path) -> tuple[list[Entry], list[str]]:
    """(name, time, report) of every report below the folder, oldest first, and why the other files were left out. Two
    that would have one name are called by their whole paths."""
    require(folder.exists(), f"{folder}: no such folder; check the path")
    found, skipped = list[tuple[Path, Report]](), list[str]()
    for path in sorted(folder.rglob("*.json")):
        try:
            report = load_report(_regular(path))
        except PrecauditError as error:
            if path.name == "report.json":
                skipped.append(str(error))
            continue
        found.append((path, report))
    if not found:
        raise PrecauditError(
            f"{folder}: no readable report below it; pass a folder of reports that `precaudit profile` wrote"
        )
    short = Counter(_name(path, folder) for path, _ in found)
    entries = [
        (name if short[name] == 1 else str(path.relative_to(folder)), measured_at(report, path), report)
        for path, report in found
        for name in [_name(path, folder)]
    ]
    return sorted(entries, key=lambda entry: (entry[1], entry[0])), skipped


def _regular(path: Path) -> Path:
    """Whether this is a regular file; reading a pipe or device may never end."""
    if path.exists() and not path.is_file():
        raise PrecauditError(f"{path}: not a regular file; give it another name, or remove it")
    return path


def _name(path: Path, folder: Path) -> str:
    short = path.parent if path.name == "report.json" and path.parent != folder else path.with_suffix("")
    return str(short.relative_to(folder))


def measured_at(report: Report, path: Path) -> datetime:
    """The time that the report states, else the file's."""
    try:
        return datetime.fromisoformat(str(report.environment.get("created"))).astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def trend(
    entries: Sequence[Entry], thresholds: Mapping[str, float | None] = DEFAULTS, asked: Sequence[str] = ()
) -> pd.DataFrame:
    """A row a report, oldest first. `regressions`, `against` and `first` hold it against earlier ones of its script:
    the one before it and, as a drift stays within the noise from each to the next, the one where something last
    changed. A run that did not come to its end is held against them, and hides them from none after it."""
    rows, last, changed = [], dict[str, Entry](), dict[str, Entry]()
    for entry in entries:
        name, time, report = entry
        script = _script(entry, last)
        bases = [last[script], changed[script]] if script in last else []
        judged = _judged(report, bases, thresholds, asked)
        if unfinished.title(report) is None:
            last[script] = entry
            if judged["regressions"] or not bases:
                changed[script] = entry
        rows.append({"report": name, "script": script, "time": time, **_figures(report), **judged})
    return pd.DataFrame(rows)


def _script(entry: Entry, last: Mapping[str, Entry]) -> str:
    """Which script a report is of, as the first report of it has it: by its path or, as a script may move and profiles
    from Python are called after a function, by that name and the layers that it still has."""
    name, _, report = entry
    path = circumstances.path(report)
    if path in last and not from_python(report):
        return path
    called = circumstances.script(report)
    namesakes = ((key, old) for key, (_, _, old) in last.items() if circumstances.script(old) == called)
    moved = (key for key, old in namesakes if _alike(old, report))
    return next(moved, path if path and path not in last else name)


def _alike(old: Report, new: Report) -> bool:
    """Whether at least half of the layers are the same ones."""
    pairs = match_layers(old.layers, new.layers).pairs
    same = sum((one.type, one.parameters) == (other.type, other.parameters) for one, other in pairs)
    return 2 * same >= max(len(old.layers), len(new.layers))


def _judged(
    head: Report, bases: Sequence[Entry], thresholds: Mapping[str, float | None], asked: Sequence[str]
) -> dict[str, Any]:
    """What regressed against the first of the bases against which something did."""
    for name, _, base in bases:
        comparison = compare(base, head, thresholds, asked)
        regressions = comparison.regressions
        if regressions:
            first = f"{place(regressions[0])}: {prose(regressions[0].message)}"
            if comparison.measured_otherwise:
                first += f" ({prose('; '.join(comparison.measured_otherwise))})"
            return {"regressions": len(regressions), "against": name, "first": first}
    return {"regressions": 0 if bases else math.nan, "against": None, "first": None}


def newest(frame: pd.DataFrame) -> pd.DataFrame:
    """The last report of each script: the ones that a trend judges."""
    return frame.groupby("script", sort=False).tail(1)


def _figures(report: Report) -> dict[str, Any]:
    """The main figures of a report; None if unmeasured."""
    formats = Counter(report.plan.modules.values())
    low = sum(count for name, count in formats.items() if name != "float32")
    window = report.plan.loss_scale.window
    taken = figures(report.performance.get("step_seconds"))
    return {
        "verdict": report.verification.verdict,
        "layers": len(report.layers),
        "low_precision": low / formats.total() if formats else None,
        "errors": sum(finding.severity == "error" for finding in report.findings),
        "window": f"2^{window[0]}..2^{window[1]}" if window else None,
        "loss_difference": report.verification.difference.mean,
        "tensor_cores": native_share(report),
        "eligible_flops": report.tensor_cores.eligible_flops_share,
        "step_seconds": taken.get("plan", taken.get("float32")),
    }


# ---------------------------------------------------------------- as text


COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "report": ("name", visible),
    "time": ("date", "{:%Y-%m-%d}".format),
    "verdict": ("verdict", str),
    "low_precision": ("low", share),
    "errors": ("errors", "{:.0f}".format),
    "tensor_cores": ("TC", share),
    "step_seconds": ("step", seconds),
    "regressions": ("worse", "{:.0f}".format),
}


def terminal(frame: pd.DataFrame) -> str:
    """What the trend is, the table in 80 columns, and where each regression began."""
    page = Page()
    for line in summary(frame):
        page.text(line, hang="  ")
    page.lines.append("")
    page.table(*_table(frame))
    for line in _regressed(frame):
        page.text(line, hang="  ")
    return str(page)


def markdown(frame: pd.DataFrame) -> str:
    headers, rows = _table(frame)
    table = md.table(headers, ([md.code(row[0]), *map(md.text, row[1:])] for row in rows))
    return "\n\n".join([md.bullets(summary(frame)), table, md.bullets(_regressed(frame))]) + "\n"


def _regressed(frame: pd.DataFrame) -> list[str]:
    """The first change in each report, the most likely cause first, and the report it was compared with."""
    return [
        f"{visible(row.report)} against {visible(row.against)}: {row.first}"
        + (f"; {plural(int(row.regressions) - 1, 'more change')}" if row.regressions > 1 else "")
        for row in frame.itertuples()
        if row.regressions > 0
    ]


def _table(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table; columns without values are left out."""
    shown = {key: column for key, column in COLUMNS.items() if frame[key].notna().any()}
    rows = frame[list(shown)].to_dict(orient="records")
    cells = [["-" if pd.isna(row[key]) else show(row[key]) for key, (_, show) in shown.items()] for row in rows]
    return [header for header, _ in shown.values()], cells
