"""Findings on gradients that have a script's loss scale in them where they should not, or have it taken out twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from precaudit.finding import finding, place_of
from precaudit.model import Finding


@dataclass(frozen=True)
class _Told:
    """How a kind of what was seen is told; `{function}` is what met the gradients, and `mixed` is added where those of
    a scaled loss and of another one are in one sum."""

    rule: str
    message: str
    fix: str
    mixed: str = ""


CERTAIN: Mapping[str, _Told] = MappingProxyType(
    {
        "clips_scaled": _Told(
            "PA502",
            "{function} clips gradients before scaler.unscale_: they are still multiplied by the loss scale, its limit "
            "is not",
            "call scaler.unscale_(optimizer) before clipping",
        ),
        "steps_scaled": _Told(
            "PA506",
            "{function} steps on gradients that are still multiplied by the loss scale, and nothing checks them for "
            "overflow: neither scaler.unscale_ nor scaler.step was called",
            "call scaler.step(optimizer) instead of optimizer.step()",
        ),
        "adds_scaled": _Told(
            "PA506",
            "the backward pass of a scaled loss adds to gradients that scaler.unscale_ has unscaled already: the "
            "optimizer steps on the sum, which has the loss scale in it",
            "call scaler.unscale_(optimizer) once a step, after the last backward pass",
        ),
        "unscaled_before": _Told(
            "PA506",
            "{function} steps on gradients of a backward pass that came after scaler.unscale_: a scaler unscales an "
            "optimizer's gradients once from one update() to the next, so these have the loss scale in them still",
            "call scaler.update() between the two, as after the first of SAM's passes",
        ),
        "adds_by_hand": _Told(
            "PA506",
            "the backward pass of a loss that is multiplied by a loss scale adds to gradients that the script has "
            "divided by it already: it divides them once more, so that the earlier ones count for almost nothing",
            "divide the gradients by the scale once a step, after the last backward pass",
        ),
        "scales_twice": _Told(
            "PA506",
            "scaler.scale multiplies a loss by the loss scale that was multiplied by it already: the scaler takes it "
            "out once, so the optimizer steps on gradients that are still scaled",
            "call scaler.scale(loss) once, where backward() is called on it",
        ),
        "unscaled_loss": _Told(
            "PA508",
            "this loss goes backward without scaler.scale, but the scaler divides its gradients by the loss scale all "
            "the same, before {function} steps",
            "scale every loss: scaler.scale(loss).backward()",
            ": beside those of the scaled loss they count for almost nothing",
        ),
    }
)
"""Each of them an error wherever it is seen."""
LIKELY: Mapping[str, _Told] = MappingProxyType(
    {
        "made_anew": _Told(
            "PA510",
            "a new GradScaler is made here in every step: its loss scale starts over each time, and is never lowered "
            "where gradients overflow",
            "make one GradScaler, before the training loop",
        ),
        "other_scaler": _Told(
            "PA508",
            "the GradScaler that unscales the gradients here, before {function} steps, is not the one that scaled the "
            "loss: they are divided by the wrong loss scale",
            "use one GradScaler for all losses and optimizers, and call its update() once a step",
        ),
    }
)
"""The cause where a script strays and nothing else explains it; the likeliest first."""
CHANGES: Mapping[str, _Told] = MappingProxyType(
    {
        "unscales_twice": _Told(
            "PA508",
            "the script reads the loss scale and changes gradients itself, before the scaler unscales them here: if "
            "it divided them by the scale, they are divided twice",
            "leave that to the scaler: call scaler.unscale_(optimizer) once, before the gradients are used",
        ),
        "changes_scaled": _Told(
            "PA502",
            "the script changes gradients itself while they are still multiplied by the loss scale, before the scaler "
            "unscales them here: a clipping threshold, a weight decay or noise then has the wrong size",
            "call scaler.unscale_(optimizer) before the gradients are changed",
        ),
    }
)
"""Errors where the change is another one with the loss scale than without; likely causes where that is unknown."""
HOOKS: Mapping[str, _Told] = MappingProxyType(
    {
        "hooks": _Told(
            "PA502",
            "a hook that the script registers here on parameters changes gradients that are still multiplied by the "
            "loss scale: a clipping threshold, a weight decay or noise then has the wrong size",
            "change the gradients after scaler.unscale_(optimizer) instead, or take scaler.get_scale() into account",
        ),
    }
)
"""Errors where what hooks do is another change with the loss scale than without."""


def of_scaled(baseline: Mapping[str, Any], kinds: Mapping[str, _Told]) -> list[Finding]:
    """One finding for each of these kinds that `ownprecision.scaled_gradients` has noted."""
    return [_finding(told, seen) for kind, told in kinds.items() if isinstance(seen := baseline.get(kind), dict)]


def _finding(told: _Told, seen: Mapping[str, Any]) -> Finding:
    message = told.message.format(function=seen.get("function"))
    beside = told.mixed if seen.get("mixed") else ""
    return finding(told.rule, "error", f"{message}{beside}", told.fix, location=place_of(seen))
