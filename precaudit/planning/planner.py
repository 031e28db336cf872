"""From bans to a plan: the lowest format that is allowed for every module, with the reasons for exceptions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from precaudit.formats import FORMATS
from precaudit.model import SEVERITIES, Layer, LossScale, OpFormat, Plan, Repair, TensorStats
from precaudit.model.fitting import format_of
from precaudit.planning.loss_scale import (
    best_compromise,
    conflicts,
    half_gradients,
    k_max,
    recommend,
    scale_ranges,
)
from precaudit.planning.rules import Ban
from precaudit.tracing.records import IN_PLACE, STOPPING, Trace

PREFERENCE = ("float8_e4m3", "bfloat16", "float16", "tf32", "float32")
"""float8 if it was asked for, then bfloat16, which has float32's range and needs no loss scale."""

_FALLBACK = {
    "float8_e4m3": ("bfloat16", "tf32", "float16", "float32"),
    "float8_e5m2": ("bfloat16", "tf32", "float16", "float32"),
    "float16": ("bfloat16", "tf32", "float32"),
    "bfloat16": ("tf32", "float16", "float32"),
    "tf32": ("float32",),
    "float32": ("float32",),
}
"""tf32 comes before float16: it has the same precision, and needs no loss scale."""


_NO_PRODUCT = "no matrix product is left in low precision, so it would gain nothing"
_UNSEEN = "it never ran with gradients here, so its values were not measured"
_BESIDE = "float8 is for linear layers with sizes in multiples of 16; this runs in bfloat16 beside them"


@dataclass(frozen=True)
class Choices:
    """What the planner may use, and what it must avoid or move to a wider format; of two repairs of one place the later
    counts."""

    formats: tuple[str, ...]
    target: str
    bans: tuple[Ban, ...] = ()
    repairs: tuple[Repair, ...] = ()
    default: str | None = None
    steps: int = 100


def default_format(formats: Sequence[str]) -> str:
    """The preferred one of these formats, by `PREFERENCE`."""
    return next((name for name in PREFERENCE if name in formats), "float32")


def fallback(current: str, allowed: Sequence[str], banned: Iterable[str] = ()) -> str:
    """The next safer format than `current` among the allowed ones; float32 is always allowed."""
    refused = set(banned)
    return next(
        (name for name in _FALLBACK[current] if (name in allowed or name == "float32") and name not in refused),
        "float32",
    )


def build_plan(trace: Trace, choices: Choices) -> Plan:
    """The plan for the trained models of a trace, loss scale included."""
    default = choices.default or default_format(choices.formats)
    layers = {layer.fqn: layer for layer in trace.trained}
    names = dict.fromkeys([*trace.leaves, *layers])
    formats = {fqn: _own_format(layers.get(fqn), default, trace) for fqn in names}
    because = {fqn: _BESIDE for fqn in names if formats[fqn] != default}
    unseen = trace.unseen if default not in ("tf32", "float32") else ()
    formats |= dict.fromkeys(unseen, "float32")
    draft = _Draft(
        choices, default, formats, because | dict.fromkeys(unseen, _UNSEEN), trace.products.intersection(layers)
    )
    for ban in choices.bans:
        draft.avoid(ban, layers.get(ban.fqn))
    for repair in choices.repairs:
        draft.widen(repair)
    plan = replace(draft.plan(), types={fqn: layer.type for fqn, layer in layers.items()})
    plan = _with_loss_scale(_led_by_products(plan, trace), trace, choices)
    # One setting serves all products of the backward pass.
    precision = "high" if "tf32" in _product_formats(plan, trace) else "highest"
    return replace(plan, matmul_precision=precision)


def without_loss_scale(formats: Sequence[str], trace: Trace) -> tuple[tuple[str, ...], str]:
    """The formats without float16 and a reason where torch's GradScaler can't be used; else all formats and ""."""
    complex_ = [
        layer.fqn or "the model itself"
        for layer in trace.trained
        if any(t.role == "weight" and t.dtype.startswith("complex") for t in layer.tensors)
    ]
    if not complex_ or "float16" not in formats:
        return tuple(formats), ""
    why = f"float16 needs a loss scale, and torch's GradScaler refuses complex parameters ({', '.join(complex_[:3])})"
    return tuple(name for name in formats if name != "float16"), why


def _product_formats(plan: Plan, trace: Trace) -> set[str]:
    return {format_of(plan, op.fqn, op.op) for op in trace.ops if op.category == "lower" and op.fqn in plan.modules}


def _led_by_products(plan: Plan, trace: Trace) -> Plan:
    """The plan with a default that some matrix product uses: all other operations follow the products' formats, so an
    unused default would mislead. No module becomes narrower than before."""
    used = _product_formats(plan, trace)
    default = default_format(sorted(used))
    follows = [fqn for fqn, name in plan.modules.items() if name == plan.default]
    if plan.default in used or (follows and default not in ("tf32", "float32")):
        return plan
    modules = {**plan.modules, **dict.fromkeys(follows, default)}
    reasons = dict.fromkeys(modules, _NO_PRODUCT) if default == "float32" else {}
    return replace(
        plan,
        default=default,
        modules=modules,
        ops=tuple(op for op in plan.ops if op.format != modules.get(op.fqn, default)),
        because={**reasons, **plan.because},
    )


def _own_format(layer: Layer | None, default: str, trace: Trace) -> str:
    """The default, except that float8 is only for linear layers with sizes in multiples of 16; others run in
    bfloat16."""
    if not default.startswith("float8"):
        return default
    shapes = [op.shapes for op in trace.ops if layer is not None and op.fqn == layer.fqn and op.op == "linear"]
    fits = bool(shapes) and all(len(s) > 1 and all(size % 16 == 0 for size in s[1]) for s in shapes)
    return default if fits else "bfloat16"


@dataclass
class _Draft:
    choices: Choices
    default: str
    modules: dict[str, str]
    because: dict[str, str]
    products: Collection[str]
    ops: dict[tuple[str, str], str] = field(default_factory=dict)

    def avoid(self, ban: Ban, layer: Layer | None) -> None:
        """Give the banned operation a safer format. Only the operation moves in a module with children, and in a leaf
        whose products it is beside; any other leaf moves as a whole, and so does a module that writes in place to what
        another of its operations stored: in float32 the operation alone would still be stored as that is."""
        key = (ban.fqn, ban.op)
        beside = ban.fqn in self.products and ban.category != "lower"
        alone = beside and len(self.products) == 1
        in_place = ban.in_place or (ban.op in IN_PLACE and not alone)
        whole = layer is None or in_place or (layer.leaf and not beside)
        current = self.modules.get(ban.fqn, self.default) if whole else self.ops.get(key, self._of(ban.fqn))
        if current != ban.format:
            return
        alike = [b for b in self.choices.bans if b.fqn == ban.fqn and (whole or b.op == ban.op)]
        refused = {b.format for b in alike} | {*ban.no_better}
        # An operation outside the products follows its inputs: only float32 frees it from their format, unless all
        # products move with it.
        moves = ban.category == "lower" or (whole and alone)
        safer = fallback(current, self.choices.formats, refused) if moves else "float32"
        if whole:
            self.modules[ban.fqn] = safer
        else:
            self.ops[key] = safer
        worst = min((b for b in alike if b.format == current), key=lambda b: SEVERITIES.index(b.severity))
        self.because[ban.fqn if whole else f"{ban.fqn}:{ban.op}"] = worst.why

    def widen(self, repair: Repair) -> None:
        """Set the format of an operation, or of all operations of a module, without its submodules."""
        fqn, op = repair.fqn, repair.op
        if op:
            self.ops[fqn, op] = repair.target
            self.because[f"{fqn}:{op}"] = repair.why
            return
        self.modules[fqn], self.because[fqn] = repair.target, repair.why
        for key in [key for key in self.ops if key[0] == fqn]:
            del self.ops[key]
            self.because.pop(f"{key[0]}:{key[1]}", None)

    def _of(self, fqn: str) -> str:
        return self.modules.get(fqn, self.default)

    def plan(self) -> Plan:
        exceptions = tuple(OpFormat(fqn, op, name) for (fqn, op), name in self.ops.items() if name != self._of(fqn))
        return Plan(
            default=self.default,
            modules=self.modules,
            ops=exceptions,
            because=self.because,
            target=self.choices.target,
        )


def _with_loss_scale(plan: Plan, trace: Trace, choices: Choices) -> Plan:
    """The plan with a loss scale for its float16 modules; modules that no common scale suits leave float16."""
    gradients, maxima = gradients_of(trace, plan)
    if not gradients or not maxima:
        return replace(plan, loss_scale=LossScale())
    while unserved := conflicts(gradients, k_max(maxima)):
        ranges = scale_ranges(gradients, _log2_peaks(trace, plan))
        moved = {fqn: ranges[fqn] for fqn in best_compromise(ranges)[1] or unserved}
        plan = _led_by_products(_without_conflicts(plan, moved, choices), trace)
        gradients = {fqn: s for fqn, s in gradients.items() if plan.modules.get(fqn) == "float16"}
        maxima = _maxima(trace, plan)
    return replace(plan, loss_scale=recommend(maxima, gradients, choices.steps))


def gradients_of(trace: Trace, plan: Plan) -> tuple[dict[str, tuple[TensorStats, ...]], list[float]]:
    """For the trained models: statistics of each module's float16 gradients, and log2 of the largest one by step."""
    gradients = half_gradients(trace.trained, plan)
    return {fqn: stats for fqn, stats in gradients.items() if any(s.numel for s in stats)}, _maxima(trace, plan)


def _maxima(trace: Trace, plan: Plan) -> list[float]:
    """log2 of the largest float16 gradient of each step, -inf where it was not measured. The audit's maxima include
    modules that the plan keeps in float32, so they are capped by the peak over the others."""
    peak = max(_log2_peaks(trace, plan).values(), default=-math.inf)
    seen = {step: min(largest, peak) for step, largest in trace.maxima}
    return [seen.get(step, -math.inf) for step in range(max(seen, default=-1) + 1)]


def _log2_peaks(trace: Trace, plan: Plan) -> dict[str, float]:
    """For each module, log2 of its largest float16 gradient under the plan, over all steps."""
    low = {fqn for fqn, name in plan.modules.items() if name == "float16"}
    records = [(layer.fqn, layer.tensors) for layer in trace.layers if layer.fqn in low]
    half = [op for op in trace.ops if op.fqn in low and op.half and op.op not in STOPPING]
    records += [(op.fqn, op.tensors) for op in half if format_of(plan, op.fqn, op.op) == "float16"]
    peaks: dict[str, float] = {}
    for fqn, tensors in records:
        found = [t.stats.amax for t in tensors if t.is_gradient and t.stats.amax]
        if found:
            peaks[fqn] = max(math.log2(max(found)), peaks.get(fqn, -math.inf))
    return peaks


def _without_conflicts(plan: Plan, unserved: Mapping[str, tuple[int, int]], choices: Choices) -> Plan:
    safer = fallback("float16", choices.formats)
    reasons = {fqn: _unserved(need, fits) for fqn, (need, fits) in unserved.items()}
    return replace(
        plan,
        modules={**plan.modules, **dict.fromkeys(reasons, safer)},
        because={**plan.because, **reasons},
    )


def _unserved(need: int, fits: int) -> str:
    if need <= fits:
        return "its gradients need another loss scale than those of other modules: no single scale serves both"
    top = FORMATS["float16"].exponent_max - fits
    return f"its largest gradients are 2^{top}, its smallest need a loss scale of 2^{need}: no single scale serves both"
