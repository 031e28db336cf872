"""Findings on gradients that are still scaled where they should not be, or are unscaled twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from precaudit.finding import finding
from precaudit.model import Finding
from precaudit.ownprecision.records import Misuse, MisuseKind


@dataclass(frozen=True)
class _Texts:
    """The texts for a kind of entry; `{function}` is what used the gradients, and `mixed` is added where gradients of a
    scaled and an unscaled loss are summed."""

    rule: str
    message: str
    fix: str
    mixed: str = ""


CERTAIN: Mapping[MisuseKind, _Texts] = MappingProxyType(
    {
        "clips_scaled": _Texts(
            "PA502",
            "{function} clips gradients before scaler.unscale_: they are still multiplied by the loss scale, its limit "
            "is not",
            "call scaler.unscale_(optimizer) before clipping",
        ),
        "clips_by_hand": _Texts(
            "PA502",
            "{function} clips gradients that are still multiplied by the script's own loss scale, and divided by it "
            "afterwards: its limit is not multiplied, so it shrinks gradients far more than it is meant to",
            "divide the gradients by the loss scale before clipping",
        ),
        "steps_scaled": _Texts(
            "PA506",
            "{function} steps on gradients that are still multiplied by the loss scale, and nothing checks them for "
            "overflow: neither scaler.unscale_ nor scaler.step was called",
            "call scaler.step(optimizer) instead of optimizer.step()",
        ),
        "steps_again": _Texts(
            "PA504",
            "{function} steps here on the gradients that scaler.step has stepped on: every step is taken twice, and "
            "this one also where the scaler skips its own, because a gradient is inf or nan",
            "call scaler.step(optimizer) alone, without optimizer.step()",
        ),
        "adds_scaled": _Texts(
            "PA506",
            "the backward pass of a scaled loss adds to gradients that scaler.unscale_ has unscaled already: the "
            "optimizer steps on the sum, which has the loss scale in it",
            "call scaler.unscale_(optimizer) once a step, after the last backward pass",
        ),
        "unscaled_before": _Texts(
            "PA506",
            "{function} steps on gradients of a backward pass that came after scaler.unscale_: a scaler unscales an "
            "optimizer's gradients once from one update() to the next, so these have the loss scale in them still",
            "call scaler.update() between the two, as after the first of SAM's passes",
        ),
        "adds_by_hand": _Texts(
            "PA506",
            "the backward pass of a loss that is multiplied by a loss scale adds to gradients that the script has "
            "divided by it already: it divides them once more, so that the earlier ones count for almost nothing",
            "divide the gradients by the scale once a step, after the last backward pass",
        ),
        "scales_twice": _Texts(
            "PA506",
            "scaler.scale multiplies a loss by the loss scale that was multiplied by it already: the scaler takes it "
            "out once, so the optimizer steps on gradients that are still scaled",
            "call scaler.scale(loss) once, where backward() is called on it",
        ),
        "unscaled_loss": _Texts(
            "PA508",
            "this loss goes backward without scaler.scale, but the scaler divides its gradients by the loss scale all "
            "the same, before {function} steps",
            "scale every loss: scaler.scale(loss).backward()",
            ": beside those of the scaled loss they count for almost nothing",
        ),
        "updated_between": _Texts(
            "PA508",
            "scaler.update() is called here between the backward pass of a scaled loss and {function}'s step: where it "
            "changes the loss scale, gradients are divided by another one than they were multiplied by",
            "call scaler.update() once a step, after the last scaler.step(optimizer)",
        ),
    }
)
"""Kinds that are errors wherever they occur."""
LIKELY: Mapping[MisuseKind, _Texts] = MappingProxyType(
    {
        "made_anew": _Texts(
            "PA510",
            "a new GradScaler is made here in every step: its loss scale starts over each time, and is never lowered "
            "where gradients overflow",
            "make one GradScaler, before the training loop",
        ),
        "other_scaler": _Texts(
            "PA508",
            "the GradScaler that unscales the gradients here, before {function} steps, is not the one that scaled the "
            "loss: they are divided by the wrong loss scale",
            "use one GradScaler for all losses and optimizers, and call its update() once a step",
        ),
    }
)
"""Likely causes where a script deviates and nothing else explains it, the likeliest first."""
CHANGES: Mapping[MisuseKind, _Texts] = MappingProxyType(
    {
        "unscales_twice": _Texts(
            "PA508",
            "the script reads the loss scale and changes gradients itself, before the scaler unscales them: if it "
            "divided them by the scale, they are divided twice",
            "leave that to the scaler: call scaler.unscale_(optimizer) once, before the gradients are used",
        ),
        "changes_scaled": _Texts(
            "PA502",
            "the script changes gradients itself while they are still multiplied by the loss scale, before the scaler "
            "unscales them: a clipping threshold, a weight decay or noise then has the wrong size",
            "call scaler.unscale_(optimizer) before the gradients are changed",
        ),
    }
)
"""Kinds that are errors where the relative change depends on the loss scale, and likely causes where that is
unknown."""
HOOKS: Mapping[MisuseKind, _Texts] = MappingProxyType(
    {
        "hooks": _Texts(
            "PA502",
            "a hook that the script registers here on parameters changes gradients that are still multiplied by the "
            "loss scale: a clipping threshold, a weight decay or noise then has the wrong size",
            "change the gradients after scaler.unscale_(optimizer) instead, or take scaler.get_scale() into account",
        ),
    }
)
"""Kinds that are errors where the relative change by hooks depends on the loss scale."""


def of_scaled(misuses: Mapping[MisuseKind, Misuse], kinds: Mapping[MisuseKind, _Texts]) -> list[Finding]:
    """One finding for each of these kinds that was recorded."""
    return [_finding(texts, misuses[kind]) for kind, texts in kinds.items() if kind in misuses]


def _finding(texts: _Texts, misuse: Misuse) -> Finding:
    message = texts.message.format(function=misuse.function) + (texts.mixed if misuse.mixed else "")
    return finding(texts.rule, "error", message, texts.fix, location=misuse.place)
