"""Reports over time: one row a report, each against the one before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from precaudit.comparison.compare import compare
from precaudit.comparison.thresholds import DEFAULTS
from precaudit.errors import PrecauditError
from precaudit.model import Report
from precaudit.reporting import markdown as md
from precaudit.reporting.serialize import load_report
from precaudit.reporting.words import inert, seconds, share, shorten, visible

DATE_KEYS = ("started", "created", "date")


def load_folder(folder: Path) -> tuple[list[tuple[str, datetime, Report]], list[str]]:
    """(name, time, report) of every report below the folder, oldest first, and why the other files were left out."""
    found, skipped = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            report = load_report(path)
        except PrecauditError as error:
            if path.name == "report.json":
                skipped.append(str(error))
            continue
        found.append((_name(path, folder), measured_at(report, path), report))
    if not found:
        raise PrecauditError(
            f"{folder}: no readable report below it; pass a folder of reports that `precaudit profile` wrote"
        )
    return sorted(found, key=lambda entry: (entry[1], entry[0])), skipped


def _name(path: Path, folder: Path) -> str:
    short = path.parent if path.name == "report.json" and path.parent != folder else path.with_suffix("")
    return str(short.relative_to(folder))


def measured_at(report: Report, path: Path) -> datetime:
    """The time that the report states, else the file's."""
    for source in (report.job, report.environment):
        for key in DATE_KEYS:
            try:
                stated = datetime.fromisoformat(str(source.get(key)))
            except ValueError:
                continue
            return stated if stated.tzinfo else stated.replace(tzinfo=UTC)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def trend(
    entries: Sequence[tuple[str, datetime, Report]], thresholds: Mapping[str, float | None] = DEFAULTS
) -> pd.DataFrame:
    """A row a report, oldest first; `regressions` and `first` compare it with the row before."""
    rows = [{"report": name, "time": time, **_figures(report)} for name, time, report in entries]
    for row, ((_, _, base), (_, _, head)) in zip(rows[1:], pairwise(entries), strict=True):
        regressions = compare(base, head, thresholds).regressions
        row["regressions"] = len(regressions)
        row["first"] = f"{regressions[0].metric} {regressions[0].fqn or ''}".rstrip() if regressions else None
    return pd.DataFrame(rows, columns=[*rows[0], *(key for key in ("regressions", "first") if key not in rows[0])])


def _figures(report: Report) -> dict[str, Any]:
    """What a person follows over time; None where it was not measured."""
    formats = Counter(report.plan.modules.values())
    low = sum(count for name, count in formats.items() if name != "float32")
    window, cores = report.plan.loss_scale.window, report.tensor_cores
    return {
        "verdict": report.verification.verdict,
        "layers": len(report.layers),
        "low_precision": low / formats.total() if formats else None,
        "errors": sum(finding.severity == "error" for finding in report.findings),
        "window": f"2^{window[0]}..2^{window[1]}" if window else None,
        "loss_difference": report.verification.difference.mean,
        "tensor_cores": cores.time_share.native if cores.measured and cores.time_share else None,
        "eligible_flops": cores.eligible_flops_share,
        "step_seconds": _step_seconds(report.performance.get("step_seconds")),
    }


def _step_seconds(figure: Any) -> float | None:
    """The plan's step time where it was taken, else float32's."""
    taken = (figure.get("plan") or figure.get("float32")) if isinstance(figure, Mapping) else None
    return float(taken) if isinstance(taken, int | float) else None


# ---------------------------------------------------------------- as text


HEADERS = ["report", "date", "verdict", "low", "errors", "TC", "step", "regressions"]
NAME_WIDTH = 22  # keeps the table within 80 columns


def terminal(frame: pd.DataFrame) -> str:
    """The table in 80 columns, then where each regression began."""
    cells = [[inert(shorten(row[0], NAME_WIDTH)), *row[1:]] for row in _cells(frame)]
    lines = [tabulate(cells, HEADERS, "simple", disable_numparse=True)]
    lines += [inert(f"{visible(row.report)}: first {visible(row.first)}") for row in _regressed(frame)]
    return "\n".join(lines) + "\n"


def markdown(frame: pd.DataFrame) -> str:
    table = md.table(HEADERS, ([md.code(row[0]), *map(md.text, row[1:])] for row in _cells(frame)))
    return "\n\n".join([table, md.bullets(f"{row.report}: first {row.first}" for row in _regressed(frame))]) + "\n"


def _regressed(frame: pd.DataFrame) -> list[Any]:
    return [row for row in frame.itertuples() if row.first and not pd.isna(row.first)]


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    shown: dict[str, Callable[[Any], str]] = {
        "report": visible,
        "time": "{:%Y-%m-%d}".format,
        "verdict": str,
        "low_precision": share,
        "errors": "{:.0f}".format,
        "tensor_cores": share,
        "step_seconds": seconds,
        "regressions": "{:.0f}".format,
    }
    rows = frame[list(shown)].to_dict(orient="records")
    return [["-" if pd.isna(row[key]) else show(row[key]) for key, show in shown.items()] for row in rows]
