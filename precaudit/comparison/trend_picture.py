"""The trend as a picture: a panel for each figure that was measured, a point a report, regressions ringed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from precaudit.reporting.drawing import FONT, THEME, WHOLE, require_drawing
from precaudit.words import shorten, visible

if TYPE_CHECKING:
    import pandas as pd

# figure of the trend: what the panel is called, and how its values read
PANELS = {
    "low_precision": ("layers in low precision", ".0%"),
    "loss_difference": ("loss difference, plan against float32", "+.2~%"),
    "tensor_cores": ("GPU time on Tensor Cores", ".0%"),
    "step_seconds": ("seconds a step", "~g"),
    "errors": ("findings that are errors", "d"),
    "regressions": ("regressions (ringed)", "d"),
}
VERDICTS = {"pass": "good", "screened": "less", "inconclusive": "less", "fail": "lost", "not_run": "plain"}
NAME_WIDTH = 28
WIDTH, HEIGHT = 640, 90


def render_svg(frame: pd.DataFrame) -> str:
    require_drawing()
    import altair as alt
    import vl_convert

    figures = [figure for figure in PANELS if frame[figure].notna().any()]
    panels = [_panel(frame, figure, named=figure == figures[-1]) for figure in figures]
    stacked = (
        alt.vconcat(*panels, spacing=14, padding={"left": 90, "right": 20, "top": 12, "bottom": 12})
        .configure(font=FONT, background="white")
        .configure_view(stroke=None)
        .configure_axis(gridColor=THEME["line"], domainColor=THEME["line"], tickColor=THEME["line"])
        .configure_title(anchor="start", frame="group", fontSize=12, fontWeight="normal")
    )
    svg: str = vl_convert.vegalite_to_svg(stacked.to_dict())
    return f"{svg}\n"


def _panel(frame: pd.DataFrame, figure: str, named: bool) -> Any:
    """One figure over the reports; `named` for the lowest panel, which names them."""
    import altair as alt

    title, format = PANELS[figure]
    labels = WHOLE if format == "d" else "datum.label"
    base = alt.Chart(alt.Data(values=_rows(frame, figure))).encode(
        x=alt.X(
            "order:O",
            title=None,
            scale=alt.Scale(domain=list(range(len(frame)))),
            axis=alt.Axis(labels=named, ticks=named, labelExpr=_names(frame), labelAngle=-40, labelLimit=0),
        ),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(format=format, tickCount=4, labelExpr=labels)),
    )
    colors = alt.Scale(domain=list(VERDICTS), range=[THEME[color] for color in VERDICTS.values()])
    points = base.mark_circle(size=70, opacity=1).encode(
        color=alt.Color("verdict:N", scale=colors, legend=alt.Legend(title="verdict", labelLimit=0)),
        tooltip=["report:N", "date:N", "verdict:N", alt.Tooltip("value:Q", format=format)],
    )
    rings = base.transform_filter("datum.regressed").mark_point(size=190, color=THEME["lost"], strokeWidth=2)
    line = base.mark_line(color=THEME["plain"], strokeWidth=1.2)
    return (line + rings + points).properties(width=WIDTH, height=HEIGHT, title=title)


def _rows(frame: pd.DataFrame, figure: str) -> list[dict[str, Any]]:
    return [
        {
            "order": i,
            "report": visible(row["report"]),
            "date": f"{row['time']:%Y-%m-%d}",
            "verdict": row["verdict"],
            "regressed": bool(row["regressions"] > 0),
            "value": float(row[figure]),
        }
        for i, row in enumerate(frame.to_dict(orient="records"))
        if row[figure] is not None and row[figure] == row[figure]
    ]


def _names(frame: pd.DataFrame) -> str:
    """A Vega expression: names by position, for two reports may be shortened to the same one."""
    return f"{json.dumps([shorten(visible(name), NAME_WIDTH) for name in frame['report']])}[datum.value]"
