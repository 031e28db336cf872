"""report.svg: the heat map alone, for slides and READMEs: gradients in float16 at the plan's loss scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.model import Report
from precaudit.reporting.pagedata import page_data
from precaudit.reporting.words import share, shorten

ROWS = 30
NAME_WIDTH = 32
FORMAT = "float16"
ROLES = ("activation_grad", "weight_grad", "activation", "weight")


def render_svg(report: Report) -> str:
    try:
        import vl_convert

        from precaudit.reporting.charts import vega
    except ImportError as error:
        raise PrecauditError(
            f'SVG needs altair and vl-convert-python ({error}); install them with: pip install "precaudit[html]"'
        ) from error
    data = page_data(report)
    role = next((role for role in ROLES if data["tensors"][role]), None)
    if role is None:
        raise PrecauditError("this report has no measured tensor, so there is no heat map to draw as SVG")
    datasets, signals = _rows(data, role)
    spec = vega("heat_map", datasets, **signals)
    scale = f", loss scale 2^{signals['k']}" if role.endswith("grad") else ""
    title = f"{data['roles'][role]} in {FORMAT}{scale}; at the right: the share of values lost"
    spec |= {"title": {"text": title, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 12}}
    spec |= {"padding": {"left": 230, "right": 70, "top": 36, "bottom": 44}, "background": "white"}
    return f"{_renumbered(vl_convert.vega_to_svg(spec))}\n"


def _renumbered(svg: str) -> str:
    """Vega counts clip paths over the whole process; the same report shall give the same file."""
    names = dict.fromkeys(re.findall(r'id="(clip\d+)"', svg))
    numbers = {name: f"clip{i}" for i, name in enumerate(names)}
    return re.sub(r'(id="|url\(#)(clip\d+)(?=["\)])', lambda match: match[1] + numbers.get(match[2], match[2]), svg)


def _rows(data: dict[str, Any], role: str) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, Any]]:
    """The data sets and signals of the rows that lose most, as the page shows them first."""
    zones = data["formats"][FORMAT]
    k = data["scale"]["k"] if role.endswith("grad") else 0
    tensors = sorted(data["tensors"][role], key=lambda tensor: -_lost(tensor, zones, k))[:ROWS]
    cells: list[Mapping[str, Any]] = [
        {"row": row, "e": first + i, "s": part}
        for row, (_, _, first, parts, *_) in enumerate(tensors)
        for i, part in enumerate(parts)
        if part
    ]
    full = [".".join(filter(None, (data["layers"][index][0], name))) for index, name, *_ in tensors]
    exponents = [cell["e"] + k for cell in cells]
    signals = {
        "k": k,
        "lo": max(min(*exponents, zones["cut"]) - 1, zones["cut"] - 30),
        "hi": max(*exponents, zones["top"]) + 2,
        "cut": zones["cut"],
        "sub": zones["sub"],
        "top": zones["top"],
        "names": [shorten(name, NAME_WIDTH) for name in full],
        "full": full,
    }
    texts: list[Mapping[str, Any]] = [
        {"row": row, "text": share(_lost(tensor, zones, k)), "bad": _is_hurt(tensor, zones, k)}
        for row, tensor in enumerate(tensors)
    ]
    return {"cells": cells, "lost": texts}, signals


def _lost(tensor: list[Any], zones: dict[str, Any], k: int) -> float:
    first, parts = tensor[2], tensor[3]
    out = (part for i, part in enumerate(parts) if not zones["cut"] <= first + i + k < zones["top"])
    return min(1.0, sum(out))


def _is_hurt(tensor: list[Any], zones: dict[str, Any], k: int) -> bool:
    amax, kept = tensor[4], tensor[6]
    return bool(amax * 2.0**k >= zones["limit"] or kept + k < zones["cut"])
