"""Ranges that moved, tensor by tensor, in binades."""

from __future__ import annotations

from collections.abc import Iterator

from scipy.stats import wasserstein_distance

from precaudit.catalogue.metrics import METRICS
from precaudit.comparison.changes import Change
from precaudit.comparison.headroom import binades
from precaudit.comparison.noise import amax_noise, amin_noise, distance_noise
from precaudit.comparison.tensors import LayerPairs, OpPairs, TensorPair, layer_tensors, op_tensors
from precaudit.model import Exponents, TensorStats
from precaudit.words import number, share

VALUES_TO_VANISH = 8  # fewer may all be zero by chance, as behind a ReLU


def center(stats: TensorStats) -> float | None:
    """Mean exponent of the finite non-zero values."""
    total = stats.exponents.total
    return sum(e * (n / total) for e, n in stats.exponents.items()) if total else None


def distance(base: Exponents, head: Exponents) -> float | None:
    """Wasserstein distance of the exponents: how far mass moves on average, so never below the center's shift."""
    if not base.total or not head.total:
        return None
    (old, old_counts), (new, new_counts) = (zip(*side.items(), strict=True) for side in (base, head))
    return float(wasserstein_distance(old, new, old_counts, new_counts))


def range_changes(layers: LayerPairs, ops: OpPairs) -> Iterator[Change]:
    """Movements beyond noise and tensors that fell silent, the likeliest cause first.

    An op's range is told where its layer's own output doesn't show it, such as logits before a softmax. What fails
    nothing by itself, as the smallest magnitude does, shows nothing.
    """
    shown = set()
    for tensor in layer_tensors(layers):
        for change in _moved(tensor):
            if METRICS[change.metric].default is not None:
                shown.add((tensor.fqn, tensor.head.role))
            yield change
    for tensor in op_tensors(ops):
        if (tensor.fqn, tensor.head.role) not in shown:
            yield from _moved(tensor)


def _moved(tensor: TensorPair) -> Iterator[Change]:
    base, head = tensor.base.stats, tensor.head.stats
    if head.nonfinite and not base.nonfinite:
        lost = share(head.nonfinite / max(1, head.numel))
        yield tensor.change("nonfinite", 1.0, f"{lost} of the values are inf or nan, none in base")
    if base.exponents.total and not head.exponents.total:
        if tensor.values_in_base >= VALUES_TO_VANISH:
            yield tensor.change("vanished", 1.0, "no finite value but zero is left")
        return
    role, values = tensor.head.role, tensor.values
    for metric, noise, old, new in (
        ("amax", amax_noise(role, values), base.amax, head.amax),
        ("amin", amin_noise(role), base.amin_nonzero, head.amin_nonzero),
    ):
        moved = binades(old, new)
        if moved is not None and abs(moved) > noise:
            way = "rose" if moved > 0 else "fell"
            message = f"{metric} {way} {abs(moved):.1f} binades ({number(old)} → {number(new)})"
            yield tensor.change(metric, abs(moved), message, old, new)
    apart = distance(base.exponents, head.exponents)
    if apart is not None and apart > distance_noise(role, values):
        before, after = center(base), center(head)
        message = f"exponents {apart:.1f} binades apart (mean {number(before)} → {number(after)})"
        yield tensor.change("distance", apart, message, before, after)
