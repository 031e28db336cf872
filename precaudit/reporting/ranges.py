"""The ranges of a report: audited formats, layers most at risk, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from precaudit.formats import EXTREME, FORMATS
from precaudit.model import FormatFit, Layer, Report, TensorRecord
from precaudit.reporting.facts import scaled_by_hand
from precaudit.words import inert, number, share, shorten, visible

NO_LAYERS = "No layer was measured: no module ran with a backward pass."
# what a plan casts; optimizer states and updates stay in float32 beside master weights
CAST_ROLES = {
    "activation": "output",
    "activation_grad": "output grad",
    "weight": "weight",
    "weight_grad": "weight grad",
}

_EXTREME_EXPONENT = math.ceil(math.log2(EXTREME))


def scaling(report: Report) -> str:
    """How the gradients shown are scaled: a GradScaler is off, a scale that the script keeps by hand is not."""
    own = scaled_by_hand(report)
    return "before any loss scale" if own is None else "under the loss scale that the script keeps by hand"


def audited_formats(report: Report) -> list[str]:
    """Formats that ranges were held against, the widest first; formats of newer versions last."""
    seen = {name for layer in report.layers for tensor in layer.tensors for name in tensor.formats}
    return [*(name for name in FORMATS if name in seen), *sorted(seen - set(FORMATS))]


def lossless_formats(report: Report) -> tuple[list[str], list[str]]:
    """The formats that lose no value of any role that a plan casts, and the others."""
    fits = [
        (name, fit.underflow_rate or _overflow(tensor, fit))
        for layer in report.layers
        for tensor in layer.tensors
        if tensor.role in CAST_ROLES
        for name, fit in tensor.formats.items()
    ]
    lossy = {name for name, lost in fits if lost}
    audited = audited_formats(report)
    return [name for name in audited if name not in lossy], [name for name in audited if name in lossy]


def ranked_layers(report: Report) -> list[Layer]:
    """Layers in the order of their risk in narrow formats; ties stay in the model's order."""
    return sorted(report.layers, key=lambda layer: max(map(_risk, layer.tensors), default=()), reverse=True)


def worst(layer: Layer) -> list[tuple[str, TensorRecord]]:
    """For each role, the tensor that is most at risk and its name: a layer has a weight role for each parameter, and
    the bias may be the one."""
    found = []
    for role, label in CAST_ROLES.items():
        tensor = max((tensor for tensor in layer.tensors if tensor.role == role), key=_risk, default=None)
        if tensor is not None:
            parameter = shorten(inert(visible(tensor.name)).rpartition(".")[2], 14)  # in_proj_weight
            found.append((label.replace("weight", parameter) if parameter else label, tensor))
    return found


def rows(layers: Iterable[Layer], formats: Sequence[str], overflow: str) -> list[list[str]]:
    """Rows of layer, role, amax, smallest value, and the loss in each format; `overflow` marks losses by overflow."""
    return [
        [
            layer.fqn,
            label,
            number(tensor.stats.amax) if not tensor.stats.nonfinite else "inf/nan",
            number(tensor.stats.amin_nonzero),
            *(_lost(tensor, name, overflow) for name in formats),
        ]
        for layer in layers
        for label, tensor in worst(layer)
    ]


def masks(report: Report) -> str:
    """A sentence on values that are shown as no overflow, where there are any."""
    if not any(_masked(tensor) for layer in report.layers for tensor in layer.tensors):
        return ""
    return " Values near float32's largest are taken for masks, of which each format has its own: they are not counted."


def _masked(tensor: TensorRecord) -> float:
    """The share of an output's values that are (a share of) float32's largest."""
    stats = tensor.stats
    if tensor.role != "activation" or stats.amax < EXTREME:
        return 0.0
    return sum(count for e, count in stats.exponents.items() if e >= _EXTREME_EXPONENT) / max(1, stats.numel)


def _overflow(tensor: TensorRecord, fit: FormatFit) -> float:
    beyond = fit.overflow_rate - _masked(tensor)
    return beyond if beyond * tensor.stats.numel > 0.5 else 0.0  # less than one value is rounding of the shares


def _lost(tensor: TensorRecord, name: str, overflow: str) -> str:
    fit = tensor.formats.get(name)
    if fit is None:
        return "-"
    beyond = _overflow(tensor, fit)
    return f"{share(beyond)}{overflow}" if beyond else share(fit.underflow_rate)


def _risk(tensor: TensorRecord) -> tuple[float, ...]:
    fits = list(tensor.formats.values()) if tensor.role in CAST_ROLES else []
    return (
        float(tensor.stats.nonfinite),
        sum(_overflow(tensor, fit) for fit in fits),
        sum(fit.flushed_energy for fit in fits),
        sum(fit.underflow_rate for fit in fits),
    )
