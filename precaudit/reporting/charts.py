"""The report's charts in Vega-Lite, written with altair: empty of data for the page, filled for SVG.

A chart is a function of named data sets and of signals (the theme's colours, the loss scale, the format), so that
the page changes what it shows without drawing it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from precaudit.reporting.drawing import AFTER, BEFORE, FONT, KINDS, THEME, WHOLE

FATES = {"holds": "fits", "less precise": "less", "to zero": "lost", "overflows": "lost"}
SIDES = {"lose gradient energy": "less", "overflow": "lost"}
CLASSES = {"native": "good", "legacy": "less", "none": "plain", "unknown": "line"}
STEP = 18

Drawing = tuple[Any, Any]  # a layered chart and its height


def styled(layered: alt.LayerChart, height: Any) -> alt.LayerChart:
    """One of the drawings below, coloured by signals."""
    colors = [alt.param(name=color, value=value) for color, value in THEME.items()]
    ink, muted, line = (alt.ExprRef(color) for color in ("ink", "muted", "line"))
    return (
        layered.add_params(*colors)
        .properties(width=680, height=height, background="transparent")
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=muted,
            titleColor=muted,
            titleFontWeight="normal",
            gridColor=line,
            domainColor=line,
            tickColor=line,
            labelFontSize=11,
            titleFontSize=11,
        )
        .configure_axisY(labelColor=ink)
        .configure_text(color=ink)
    )


# ---------------------------------------------------------------- pieces


def _signals(**values: Any) -> list[alt.Parameter]:
    return [alt.param(name=name, value=value) for name, value in values.items()]


def _palette(colors: Mapping[str, str]) -> alt.Scale:
    """Names to the theme's colours, by signal."""
    return alt.Scale(domain=list(colors), range=[{"expr": color} for color in colors.values()])


def _rows(**options: Any) -> alt.Y:
    """Rows by number: their names are in the signal `names`, for two layers may be shortened to the same one."""
    axis = alt.Axis(labelExpr="names[datum.value] || ''", labelLimit=0, title=None, ticks=False, domain=False)
    return alt.Y("row:O", axis=axis, sort=None, **options)


def _exponent(**axis: Any) -> alt.X:
    scale = alt.Scale(domainMin={"expr": "lo"}, domainMax={"expr": "hi"}, nice=False, zero=False)
    return alt.X(
        "x:Q",
        scale=scale,
        axis=alt.Axis(**{"tickMinStep": 1, "labelFlush": False, "labelExpr": "'2^' + datum.value", **axis}),
    )


# ---------------------------------------------------------------- ranges


def heat_map() -> Drawing:
    """Layers by exponent: `k` shifts the values; `cut`, `sub` and `top` are where the format's zones begin.

    `cells` has {row, e, s}: the share `s` of a row's values with exponent `e`; `lost` has {row, text, bad}.
    """
    x = _exponent(title="magnitude of the values")
    fill = alt.Color("fate:N", scale=_palette(FATES), legend=None)
    signals = _signals(k=0, lo=-40, hi=20, cut=-25, sub=-14, top=16, names=[], full=[])
    layers = _zones(x, fill) + _cells(x, fill) + _edges(x) + _lost()
    return layers.add_params(*signals), alt.Step(STEP)


def _zones(x: alt.X, fill: alt.Color) -> alt.Chart:
    """The background of the cells: what happens to values in each part of the format's range."""
    return (
        alt.Chart(alt.Data(values=[{"fate": zone} for zone in ("less precise", "to zero", "overflows")]))
        .transform_calculate(
            x="datum.fate == 'to zero' ? lo : datum.fate == 'overflows' ? top : cut",
            x2="datum.fate == 'to zero' ? cut : datum.fate == 'overflows' ? hi : sub",
        )
        .mark_rect(opacity=0.09, clip=True, aria=False)
        .encode(x=x, x2="x2:Q", color=fill)
    )


def _cells(x: alt.X, fill: alt.Color) -> alt.Chart:
    depth = alt.Scale(type="log", domain=[1e-6, 0.2], range=[0.18, 1], clamp=True)
    return (
        alt.Chart(alt.NamedData("cells"))
        .transform_calculate(
            x="datum.e + k",
            x2="datum.e + k + 1",
            fate="datum.e + k < cut ? 'to zero' : datum.e + k >= top ? 'overflows' : "
            "datum.e + k < sub ? 'less precise' : 'holds'",
            layer="full[datum.row]",
            values="'2^' + (datum.e + k) + ' to 2^' + (datum.e + k + 1)",
            share="datum.s < 0.0001 ? '<0.01%' : format(datum.s, '.2%')",
        )
        .mark_rect(clip=True, aria=False)
        .encode(
            x=x,
            x2="x2:Q",
            y=_rows(scale=alt.Scale(paddingInner=0.14)),
            color=fill,
            opacity=alt.Opacity("s:Q", scale=depth, legend=None),
            tooltip=["layer:N", "values:N", "share:N", "fate:N"],
        )
    )


def _edges(x: alt.X) -> alt.Chart:
    return (
        alt.Chart(alt.Data(values=[{"edge": edge} for edge in ("cut", "sub", "top")]))
        .transform_calculate(x="datum.edge == 'cut' ? cut : datum.edge == 'sub' ? sub : top")
        .mark_rule(color=alt.ExprRef("muted"), strokeDash=[4, 3], clip=True, aria=False)
        .encode(x=x)
    )


def _lost() -> alt.Chart:
    """The loss of each row, as text to its right."""
    return (
        alt.Chart(alt.NamedData("lost"))
        .mark_text(align="left", dx=8, fontSize=11, aria=False)
        .encode(
            x=alt.value(alt.ExprRef("width")),
            y=_rows(),
            text="text:N",
            color=alt.condition("datum.bad", alt.value(alt.ExprRef("lost")), alt.value(alt.ExprRef("muted"))),
        )
    )


def formats() -> Drawing:
    """Where each format's normal and subnormal values lie; `spans` has {row, x, x2, part, chosen}."""
    base = alt.Chart(alt.NamedData("spans"))
    bars = base.mark_bar(clip=True, aria=False, cornerRadius=2).encode(
        x=_exponent(title=None, labels=False, ticks=False, domain=False, grid=False),
        x2="x2:Q",
        y=_rows(scale=alt.Scale(paddingInner=0.45)),
        color=alt.condition("datum.chosen", alt.value(alt.ExprRef("fits")), alt.value(alt.ExprRef("plain"))),
        opacity=alt.condition("datum.part == 'normal'", alt.value(0.9), alt.value(0.35)),
        tooltip=["name:N", "part:N", "from:N", "to:N"],
    )
    return alt.layer(bars).add_params(*_signals(lo=-40, hi=20, names=[])), alt.Step(STEP)


def scales() -> Drawing:
    """How many gradients each loss scale hurts, on which side: `hurt` has {k, side, n}; the window is wlo to whi."""
    x = alt.X(
        "at:Q",
        scale=alt.Scale(domainMin={"expr": "klo"}, domainMax={"expr": "khi"}, nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, labelExpr="'2^' + datum.value", title="loss scale"),
    )
    window = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(at="wlo - 0.5", to="whi + 0.5")
        .mark_rect(opacity=0.16, color=alt.ExprRef("good"), clip=True, aria=False)
        .encode(x=x, x2="to:Q")
    )
    bars = (
        alt.Chart(alt.NamedData("hurt"))
        .transform_calculate(at="datum.k - 0.42", to="datum.k + 0.42", scale="'2^' + datum.k")
        .mark_rect(clip=True, aria=False)
        .encode(
            x=x,
            x2="to:Q",
            y=alt.Y(
                "n:Q", stack="zero", axis=alt.Axis(title="gradients hurt", labelExpr=WHOLE, format="d", tickCount=4)
            ),
            color=alt.Color("side:N", scale=_palette(SIDES), legend=None),
            tooltip=["scale:N", "side:N", alt.Tooltip("n:Q", title="gradients")],
        )
    )
    now = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(at="k")
        .mark_rule(color=alt.ExprRef("ink"), strokeWidth=2, clip=True, aria=False)
        .encode(x=x)
    )
    return (window + bars + now).add_params(*_signals(k=0, klo=-8, khi=32, wlo=99, whi=98)), 120


# ---------------------------------------------------------------- trainings


STEPS = alt.X(
    "step:Q",
    axis=alt.Axis(title="step", grid=False, format=",d", labelExpr=WHOLE),
    scale=alt.Scale(nice=False, zero=False),
)


def losses() -> Drawing:
    """Loss curves of every run, over the band that counts as the same; `curves` and `band` are the data."""
    y = alt.Y("loss:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title="loss", tickCount=6))
    band = (
        alt.Chart(alt.NamedData("band"))
        .mark_area(opacity=0.25, color=alt.ExprRef("good"), aria=False)
        .encode(x=STEPS, y=alt.Y("low:Q"), y2="high:Q", detail="of:N")
    )
    base = alt.Chart(alt.NamedData("curves")).encode(
        x=STEPS,
        y=y,
        color=alt.Color("kind:N", scale=_palette(KINDS), legend=None),
        detail="run:N",
    )
    lines = base.mark_line(opacity=0.85, aria=False).encode(
        strokeWidth=alt.condition("datum.kind == 'float32'", alt.value(4), alt.value(1.5))
    )
    points = base.mark_circle(opacity=0, size=90, aria=False).encode(tooltip=["run:N", "step:Q", "loss:Q"])
    return band + lines + points, 260


def differences() -> Drawing:
    """Paired relative differences of the loss for each seed and their mean; over the steps compared, from `first` to
    `last`, their mean over all seeds and steps in the band of ±margin."""
    y = alt.Y("d:Q", axis=alt.Axis(title="loss difference", format="+.2~%", tickCount=6, titlePadding=12))
    compared = alt.Chart(alt.Data(values=[{}])).transform_calculate(step="first", last="last")
    band = (
        compared.transform_calculate(d="-margin", high="margin")
        .mark_rect(opacity=0.25, color=alt.ExprRef("good"), aria=False)
        .encode(x=STEPS, x2="last:Q", y=y, y2="high:Q")
    )
    verdict = (
        compared.transform_calculate(d="mean")
        .mark_rule(strokeWidth=4, color=alt.ExprRef("ink"), aria=False)
        .encode(x=STEPS, x2="last:Q", y=y)
    )
    zero = alt.Chart(alt.Data(values=[{"d": 0}])).mark_rule(color=alt.ExprRef("muted"), aria=False).encode(y=y)
    base = alt.Chart(alt.NamedData("pairs")).encode(x=STEPS, y=y)
    seeds = base.mark_line(strokeWidth=1, opacity=0.5, color=alt.ExprRef("plain"), aria=False).encode(detail="run:N")
    mean = (
        base.transform_aggregate(d="mean(d)", groupby=["step", "of"])
        .mark_line(strokeWidth=1.8, color=alt.ExprRef("fits"), aria=False)
        .encode(detail="of:N")
    )
    points = base.mark_circle(opacity=0, size=90, aria=False).encode(
        tooltip=["run:N", "step:Q", alt.Tooltip("d:Q", title="difference", format="+.3%")]
    )
    drawing = band + zero + seeds + mean + verdict + points
    return drawing.add_params(*_signals(margin=0, mean=None, first=0, last=0)), 200


def times() -> Drawing:
    """GPU time of each layer by Tensor Core class; rows are {row, when, kind, seconds}: float32 pale, the plan full."""
    bars = (
        alt.Chart(alt.NamedData("times"))
        .transform_calculate(ms="1000 * datum.seconds", layer="full[datum.row]")
        .mark_bar(aria=False)
        .encode(
            x=alt.X("ms:Q", axis=alt.Axis(title="GPU time, ms")),
            y=_rows(scale=alt.Scale(paddingInner=0.3)),
            yOffset=alt.YOffset("when:N", sort=[BEFORE, AFTER]),
            color=alt.Color("kind:N", scale=_palette(CLASSES), legend=None),
            opacity=alt.condition(f"datum.when == '{BEFORE}'", alt.value(0.5), alt.value(1)),
            tooltip=["layer:N", "when:N", "kind:N", alt.Tooltip("ms:Q", format=".4g")],
        )
    )
    return alt.layer(bars).add_params(*_signals(names=[], full=[])), alt.Step(2 * STEP - 8, **{"for": "position"})
