"""precaudit: which precision where, with what loss scale, and proof by training.

The public API loads on first use, so that `import precaudit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from precaudit.api import audit, load_plan, load_report, profile
    from precaudit.errors import PrecauditError
    from precaudit.execution.apply import apply, remove
    from precaudit.model import Plan, Report

_MODULE_OF = {
    "apply": "precaudit.execution.apply",
    "audit": "precaudit.api",
    "load_plan": "precaudit.api",
    "load_report": "precaudit.api",
    "profile": "precaudit.api",
    "remove": "precaudit.execution.apply",
    "Plan": "precaudit.model",
    "PrecauditError": "precaudit.errors",
    "Report": "precaudit.model",
}

__all__ = ["Plan", "PrecauditError", "Report", "apply", "audit", "load_plan", "load_report", "profile", "remove"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'precaudit' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
