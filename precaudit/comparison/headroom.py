"""Room between a tensor's largest magnitude and the maximum of the format that the plan puts it in."""

from __future__ import annotations

import math
from collections.abc import Iterator

from precaudit.comparison.changes import Change
from precaudit.comparison.noise import amax_noise
from precaudit.comparison.tensors import LayerPairs, layer_tensors
from precaudit.formats import FORMATS, Format
from precaudit.model import Plan, TensorRecord

# Tensors that the planned format has to hold as they are: gradients have the loss scale to place them.
PLACED_ROLES = frozenset(("weight", "activation"))
HEADROOM_AT_STAKE = 8.0


def headroom_changes(pairs: LayerPairs, base: Plan, head: Plan) -> Iterator[Change]:
    """Headroom lost within the last `HEADROOM_AT_STAKE` binades; more headroom than that doesn't matter."""
    names = {new.fqn: old.fqn for old, new in pairs}
    for tensor in layer_tensors(pairs):
        old_format = FORMATS.get(base.modules.get(names[tensor.fqn], ""))
        new_format = FORMATS.get(head.modules.get(tensor.fqn, ""))
        if tensor.head.role not in PLACED_ROLES or old_format is None or new_format is None:
            continue
        old, new = headroom(tensor.base, old_format), headroom(tensor.head, new_format)
        if old is None or new is None:
            continue
        lost = min(old, HEADROOM_AT_STAKE) - min(new, HEADROOM_AT_STAKE)
        if lost > amax_noise(tensor.head.role, tensor.values):
            message = f"{new:.1f} binades are left below {new_format.name}'s maximum, {old:.1f} in base"
            yield tensor.change("headroom", lost, message, old, new)


def headroom(record: TensorRecord, target: Format) -> float | None:
    """Binades between the largest magnitude and the format's maximum, negative past it."""
    return binades(record.stats.amax, target.maximum)


def binades(base: float, head: float) -> float | None:
    """From one magnitude up to another; None where either is zero or not finite."""
    usable = 0 < base < math.inf and 0 < head < math.inf
    return math.log2(head) - math.log2(base) if usable else None
