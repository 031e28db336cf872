"""Findings on weights and optimizer states that a script keeps in half precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from precaudit.finding import finding
from precaudit.formats import HALF_FORMATS
from precaudit.model import Finding, Layer, Location, TensorRecord
from precaudit.ownprecision.records import Cast, RoundedConstant
from precaudit.profiling.audit import Audit
from precaudit.tracing.records import Trace
from precaudit.words import listing, plural

_MOST = 20
_PACE = 0.9
"""What moves by this share of its way in float32 keeps pace with it."""
_LAGS = 0.5
"""What moves by less than this share of its way in float32 lags behind it."""
_MASTER_WEIGHTS = "keep float32 master weights: train the float32 model under autocast instead of casting it"
WITHOUT_MEMORY = (
    "; where memory forbids it, let the optimizer round updates stochastically (torchao.optim.AdamW8bit takes "
    "bf16_stochastic_round=True) or keep what they lose for the next one (Kahan's summation)"
)
"""What else bfloat16 weights can do."""


def of_half_weights(audit: Audit, pace: Mapping[str, bool]) -> list[Finding]:
    """PA301, PA302: weights and optimizer states that the script keeps in half precision."""
    run = audit.as_written
    if run is None or run.trace is None:
        return []
    return [
        found
        for layer in run.trace.layers
        for found in (*_of_weights(layer, run.own_precision.casts, pace), *_of_states(layer, run.own_precision.casts))
    ]


def keeping_pace(audit: Audit) -> dict[str, bool]:
    """The parameters that moved as far as in float32 although updates were rounded away, as with compensated summation
    or stochastic rounding. What no gradient trains, as a target network, rounds the same way in every step: if it moved
    much farther, its rounding has moved it. A name without a model stands for the parameters of that name in all
    models."""
    run = audit.as_written
    written = run.end_state.learned if run else {}
    trained = set(_trained(run.trace)) if run and run.trace else set()
    pace: dict[str, bool] = {}
    for name, far in audit.reference.end_state.learned.items():
        most = math.inf if name in trained else far / _PACE
        for key in (name, name.partition(".")[2]) if far else ():
            pace[key] = pace.get(key, True) and _PACE * far <= written.get(name, 0.0) <= most
    return pace


def of_standing_still(audit: Audit) -> list[Finding]:
    """PA303: weights that no gradient trains (an average, a target network), which move in float32 and not at all as
    written, although they may be float32 themselves: the factor by which they decay has become one."""
    run, moving = audit.as_written, _untrained(audit)
    follows = {_model(name) for name, (_, written) in moving.items() if written != 0}
    still = [name for name in moving if _model(name) not in follows]
    if run is None or not still:
        return []
    models = dict.fromkeys(map(_model, still))
    message = (
        f"{listing(models, 3)}: {plural(len(still), 'weight')} that no gradient trains, as an average's or a target's, "
        "stand still in the script's own low precision, and move in float32: where they decay by a factor, that may "
        "have become one, as 0.999 does in bfloat16"
    )
    fix = "keep what these weights are updated with in float32, the factor too"
    constants = [constant.place for constant in run.own_precision.entries(RoundedConstant)]
    place = next(iter([*constants, *(cast.place for cast in run.own_precision.casts)]), None)
    return [finding("PA303", "error", message, fix, location=place, role="weights", weights=still[:_MOST])]


def lagging(audit: Audit) -> set[str]:
    """The modules of which every weight lags behind float32 as written, although no gradient trains it: an average's or
    a target's, whose harm no training loss need show."""
    lags: dict[str, bool] = {}
    for name, (far, written) in _untrained(audit).items():
        if written is not None:
            module = name.rpartition(".")[0]
            lags[module] = lags.get(module, True) and written < _LAGS * far
    return {module for module, each in lags.items() if each}


def _untrained(audit: Audit) -> dict[str, tuple[float, float | None]]:
    """How far the weights that no gradient trains move in float32, those that do, and how far as written (None where
    that is not known); none where the run as written is shorter."""
    run = audit.as_written
    if run is None or run.trace is None or run.steps < audit.reference.steps:
        return {}
    trained, written = set(_trained(run.trace)), run.end_state.learned
    moving = audit.reference.end_state.learned.items()
    return {name: (far, written.get(name)) for name, far in moving if far and name not in trained}


def _model(parameter: str) -> str:
    return parameter.partition(".")[0]


def _trained(trace: Trace) -> Iterator[str]:
    """The parameters that have gradients, with and without the model's name."""
    for layer in trace.layers:
        for name in (tensor.name for tensor in layer.tensors if tensor.role == "weight_grad"):
            yield f"{layer.fqn}.{name}".lstrip(".")
            yield f"{layer.model}.{layer.fqn}".rstrip(".") + f".{name}"


def _of_weights(layer: Layer, casts: Sequence[Cast], pace: Mapping[str, bool]) -> Iterator[Finding]:
    """PA301: half weights that absorb their updates, where there is a gradient. Whether a tiny tensor keeps pace is
    judged by the others of its layer."""
    names = {w.name: f"{layer.fqn}.{w.name}".lstrip(".") for w in layer.tensors if w.role == "weight"}
    known = [pace[name] for name in names.values() if name in pace]
    for weight in layer.tensors:
        if weight.role != "weight" or weight.dtype not in HALF_FORMATS:
            continue
        name = names[weight.name]
        if pace.get(name, bool(known) and all(known)):
            continue
        update, gradient = layer.tensor("update", weight.name), layer.tensor("weight_grad", weight.name)
        if not update or not gradient or not update.stats.numel:
            continue
        moved = _zero_share(update)
        if moved - _zero_share(gradient) > 0.5:
            message = f"{name}: {moved:.0%} of its updates are rounded away, with weights in {weight.dtype}"
            fix = f"{_MASTER_WEIGHTS}{WITHOUT_MEMORY if weight.dtype == 'bfloat16' else ''}"
            place = _cast_to(weight.dtype, casts)
            yield finding("PA301", "error", message, fix, layer.fqn, None, place, share=moved)
            return


def _of_states(layer: Layer, casts: Sequence[Cast]) -> Iterator[Finding]:
    """PA302: optimizer states that are zero in float16 although the gradients are not."""
    for state in layer.tensors:
        if state.role != "optimizer_state" or state.dtype != "float16":
            continue
        parameter, _, kind = state.name.rpartition(".")
        gradient, share = layer.tensor("weight_grad", parameter), _zero_share(state)
        if share - (_zero_share(gradient) if gradient else 0.0) > 0.01:
            eps = ", as Adam's own eps of 1e-8 is" if kind == "exp_avg_sq" else ""
            message = f"{layer.fqn or 'the model itself'}: {share:.0%} of {state.name} is zero in float16{eps}"
            fix = "keep optimizer states in float32: torch's optimizers make them in the dtype of the weights"
            place = _cast_to(state.dtype, casts)
            yield finding("PA302", "error", message, fix, layer.fqn, None, place, state=state.name, share=share)


def _cast_to(dtype: str, casts: Sequence[Cast]) -> Location | None:
    return next((cast.place for cast in casts if cast.dtype == dtype), None)


def _zero_share(tensor: TensorRecord) -> float:
    return tensor.stats.zeros / max(1, tensor.stats.numel)
