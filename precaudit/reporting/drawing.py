"""Whether pictures can be drawn: vl-convert-python brings a JavaScript engine, which ends the process where it can't
start."""

from __future__ import annotations

import sys
from importlib.util import find_spec

RESERVED = 96 * 2**30
"""Addresses, not memory; the engine takes 64 GB at its start."""


def hindrance() -> str | None:
    """What is in the way of drawing here, and what to do about it."""
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
        return float("inf")
    from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

    limit, _ = getrlimit(RLIMIT_AS)
    return float("inf") if limit == RLIM_INFINITY else limit
