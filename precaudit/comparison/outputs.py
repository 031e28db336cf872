"""The output formats of a comparison and a trend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precaudit import reporting
from precaudit.comparison.changes import Comparison
from precaudit.comparison.findings import as_report
from precaudit.comparison.markdown import render_markdown
from precaudit.comparison.rows import Names
from precaudit.comparison.terminal import render_terminal
from precaudit.model import Report
from precaudit.reporting.serialize import indented, to_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1


def render(comparison: Comparison, format: str, names: Names, head: Report, color: bool = False) -> str:
    if format == "json":
        heading = {"schema_version": SCHEMA_VERSION, "base": names[0], "head": names[1], "clean": comparison.clean}
        return indented(to_json(heading) | to_json(comparison))
    if format == "markdown":
        return render_markdown(comparison, names)
    if format == "terminal":
        return render_terminal(comparison, names, color)
    return reporting.render(as_report(comparison, head), format)


def render_trend(frame: pd.DataFrame, format: str) -> str:
    from precaudit.comparison import trend

    if format == "json":
        return indented(to_json(frame.astype(object).where(frame.notna(), None).to_dict(orient="records")))
    if format == "csv":
        return frame.to_csv(index=False)
    if format == "svg":
        from precaudit.comparison.trend_picture import render_svg

        return render_svg(frame)
    return trend.markdown(frame) if format == "markdown" else trend.terminal(frame)
