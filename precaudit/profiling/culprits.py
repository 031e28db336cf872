"""The operation of a module that is to blame for its error."""

from __future__ import annotations

import math

from precaudit.model import Op
from precaudit.model.fitting import format_of
from precaudit.profiling.bisect import Measure, Search, culprit, of_gradients
from precaudit.tracing.records import ABSORBING, Trace

_ROUGH = 0.1


def culprit_of(trace: Trace, search: Search, fqn: str, measure: Measure = of_gradients) -> Op | None:
    """The operation of a module to blame for the plan's error: the one whose own error tells, the only one in low
    precision, or else the one without whose rounding most of the error is gone."""
    low_format = search.plan.modules.get(fqn, search.plan.default)
    if (worst := roughest(trace, fqn, low_format)) is not None:
        return worst
    own = {op.op: op for op in trace.ops if op.fqn == fqn and (op.half or op.category == "lower")}
    low = [name for name in own if format_of(search.plan, fqn, name) == low_format]
    if len(low) > 1:
        return own.get(culprit(search, fqn, low, measure) or "")
    return own[low[0]] if len(low) == 1 else None


def roughest(trace: Trace, fqn: str, format_name: str) -> Op | None:
    """The operation of a module that amplifies the rounding of its inputs far more than others, as a difference of
    large values or the sine of a large angle does. Sums don't count: their error is relative to the smaller addend."""
    ops = [op for op in trace.ops if op.fqn == fqn and op.op not in ABSORBING]
    worst = max(ops, key=lambda op: op.local_error.get(format_name, 0.0), default=None)
    return worst if worst is not None and _ROUGH <= worst.local_error.get(format_name, 0.0) < math.inf else None
