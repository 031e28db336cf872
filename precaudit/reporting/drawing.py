"""Pictures: colours, Vega specifications, and whether they can be drawn: vl-convert-python's JavaScript engine ends the
process where it can't start."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.reporting.cached import cached

CHARTS = ("heat_map", "formats", "scales", "losses", "differences", "times")
THEME = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "line": "#d8dee4",
    "fits": "#2563eb",
    "less": "#d97706",
    "lost": "#dc2626",
    "good": "#15803d",
    "plain": "#8b949e",
}
BEFORE, AFTER = "float32", "the plan"
KINDS = {BEFORE: "plain", AFTER: "fits", "earlier plans": "less", "other runs": "line"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
WHOLE = "datum.value % 1 ? '' : datum.label"
"""A label of an axis that counts: between few whole numbers Vega draws halves, whatever step it is told."""
RESERVED = 96 * 2**30
"""Addresses, not memory; the engine takes 64 GB at its start."""


def require_drawing() -> None:
    """Raise PrecauditError where nothing can be drawn."""
    if lacking := hindrance():
        raise PrecauditError(f"no SVG can be drawn: {lacking}")


def hindrance() -> str | None:
    """The reason why nothing can be drawn here, and what to do about it."""
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        return 'altair and vl-convert-python are not installed; install them with pip install "precaudit[html]"'
    if _addresses() < RESERVED:
        return (
            f"this process may have fewer than the {RESERVED // 2**30} GB of addresses that vl-convert-python wants; "
            "lift the limit (ulimit -v unlimited)"
        )
    return None


def _addresses() -> float:
    if sys.platform == "win32":
        return math.inf
    from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

    limit, _ = getrlimit(RLIMIT_AS)
    return math.inf if limit == RLIM_INFINITY else limit


def vega(name: str, data: Mapping[str, Any] | None = None, **signals: Any) -> dict[str, Any]:
    """One of `CHARTS` compiled to Vega, with data and signals put in."""
    sources = b"".join(Path(__file__).with_name(file).read_bytes() for file in ("charts.py", "drawing.py"))
    digest = hashlib.sha256(sources).hexdigest()[:16]
    key = f"chart-{name}-{digest}-{version('altair')}-{version('vl-convert-python')}"
    spec = cached(key, lambda: _compiled(name))
    for dataset in spec["data"]:
        if data and dataset["name"] in data:
            dataset["values"] = data[dataset["name"]]
    for signal in spec["signals"]:
        if signal["name"] in signals:
            signal["value"] = signals[signal["name"]]
    return spec | {"autosize": "none", "background": None}


def _compiled(name: str) -> dict[str, Any]:
    import vl_convert

    from precaudit.reporting import charts  # takes a second, and here alone it is needed

    chart = charts.styled(*getattr(charts, name)())
    spec: dict[str, Any] = vl_convert.vegalite_to_vega(chart.to_dict())
    return spec
