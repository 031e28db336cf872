"""The page's charts as pictures: report.svg for slides, and one for each section of a Markdown file.

Gradients in the plan's half format at its loss scale, then the loss of every run and the paired differences, then
GPU time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any
from xml.etree import ElementTree

from precaudit.errors import PrecauditError
from precaudit.model import Report
from precaudit.reporting.drawing import AFTER, BEFORE, hindrance, require_drawing, vega
from precaudit.reporting.page_data import page_data
from precaudit.reporting.shown import as_shown
from precaudit.words import fitted, share

ROWS = 30
NAME_WIDTH = 32
PADDING = {"left": 230, "right": 70, "top": 36, "bottom": 44}
SVG = "http://www.w3.org/2000/svg"
Spec = dict[str, Any]
ROLES = ("activation_grad", "weight_grad", "activation", "weight")


def render_svg(report: Report) -> str:
    require_drawing()
    specs = [spec for group in _groups(report).values() for spec in group]
    if not specs:
        raise PrecauditError("this report has no measured tensor and no training run, so there is nothing to draw")
    return _drawn(specs)


def pictures(report: Report) -> dict[str, str]:
    """SVG by the section that it illustrates: `ranges`, `training`, `times`; without those that have no data."""
    return {name: _drawn(specs) for name, specs in _groups(report).items() if specs} if not hindrance() else {}


def _groups(report: Report) -> dict[str, list[Spec]]:
    data = page_data(as_shown(report))
    return {
        "ranges": list(_heat_map(data)),
        "training": list(_trainings(data["trainings"])),
        "times": list(_times(data["times"])),
    }


def _drawn(specs: list[Spec]) -> str:
    return f"{_renumbered(_stacked(specs))}\n"


def _heat_map(data: dict[str, Any]) -> Iterator[Spec]:
    role = next((role for role in ROLES if data["tensors"][role]), None)
    if role is None:
        return
    datasets, signals = _rows(data, role)
    scale = f", loss scale 2^{signals['k']}" if role.endswith("grad") and signals["k"] else ""
    title = f"{data['roles'][role]} in {data['format']}{scale}; at the right: the share of values lost"
    yield _picture("heat_map", title, datasets, signals)


def _trainings(data: dict[str, Any]) -> Iterator[Spec]:
    if data["curves"]:
        colors = {BEFORE: "grey", AFTER: "blue", "earlier plans": "orange"}
        shown = {row["kind"] for row in data["curves"]}
        named = ", ".join(f"{kind} {color}" for kind, color in colors.items() if kind in shown)
        title = f"loss of every training run: {named}"
        yield _picture("losses", title, {"curves": data["curves"], "band": data["band"]}, {})
    if data["pairs"]:
        title = "the plan's loss against float32's, each seed and their mean; black: what is compared; green: the same"
        yield _picture("differences", title, {"pairs": data["pairs"]}, data["signals"])


def _times(times: dict[str, Any]) -> Iterator[Spec]:
    if full := times["names"]:
        title = (
            "GPU time of each layer; float32 pale, the plan full; green runs on Tensor Cores, orange by a legacy path"
        )
        signals = {"full": full, "names": fitted(full, NAME_WIDTH)}
        yield _picture("times", title, {"times": times["rows"]}, signals)


def _picture(name: str, title: str, datasets: Mapping[str, Any], signals: Mapping[str, Any]) -> Spec:
    heading = {"text": title, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "frame": "group", "offset": 12}
    spec = vega(name, datasets, **signals)
    marks = [mark for mark in spec["marks"] if mark["type"] != "symbol"]  # there only to be pointed at
    return spec | {"marks": marks, "title": heading, "padding": PADDING, "background": "white"}


def _stacked(specs: list[Spec]) -> str:
    """The pictures below each other in one file: an svg element may hold others at their places."""
    import vl_convert

    pictures = [ElementTree.fromstring(vl_convert.vega_to_svg(spec)) for spec in specs]
    heights = [float(picture.attrib["height"]) for picture in pictures]
    width = max(float(picture.attrib["width"]) for picture in pictures)
    page = ElementTree.Element(f"{{{SVG}}}svg", width=f"{width:g}", height=f"{sum(heights):g}")
    for picture, top in zip(pictures, accumulate(heights, initial=0.0), strict=False):
        picture.set("y", f"{top:g}")
        page.append(picture)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(page, encoding="unicode")


def _renumbered(svg: str) -> str:
    """Vega counts clip paths over the whole process; the same report shall give the same file."""
    names = dict.fromkeys(re.findall(r'id="(clip\d+)"', svg))
    numbers = {name: f"clip{i}" for i, name in enumerate(names)}
    return re.sub(r'(id="|url\(#)(clip\d+)(?=["\)])', lambda match: match[1] + numbers.get(match[2], match[2]), svg)


def _rows(data: dict[str, Any], role: str) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, Any]]:
    """The data sets and signals of the rows that lose most, as the page shows them first."""
    zones = data["formats"][data["format"]]
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
        "names": fitted(full, NAME_WIDTH),
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
    amax, _, kept, residue = tensor[4:]
    return bool(amax * 2.0**k >= zones["limit"] or (not residue and kept + k < zones["cut"]))
