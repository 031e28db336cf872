"""Changes of layers, operations and dtypes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from precaudit.comparison.changes import Change
from precaudit.comparison.matching import Matching
from precaudit.comparison.tensors import LayerPairs, OpPairs, paired_records
from precaudit.model import Layer, Op, Report
from precaudit.reporting.places import WHOLE
from precaudit.words import plural, shared_start

# Calls in some ten steps: a run like it has none with a chance of 1.8% where there were five, and of 0.6% at six.
SELDOM = 6
ALIGNED = 8  # elements of 16 bits that Tensor Cores want in a dimension


def layer_changes(matching: Matching, base: Report, head: Report) -> Iterator[Change]:
    """Layers replaced, resized, removed, added and renamed."""
    for old, new in matching.pairs:
        if old.type != new.type:
            message = f"{old.type} became {new.type}"
            yield Change("layers_replaced", 1.0, message, fqn=new.fqn, base=old.type, head=new.type)
        if old.parameters != new.parameters:
            message = f"{old.parameters:,} parameters became {new.parameters:,}"
            yield Change("layers_resized", 1.0, message, fqn=new.fqn, base=old.parameters, head=new.parameters)
        if old.fqn != new.fqn:
            message = f"{_renaming(old.fqn, new.fqn)}: a plan or checkpoint that names it no longer fits"
            yield Change("layers_renamed", 1.0, message, fqn=new.fqn, base=old.fqn, head=new.fqn)
    for gone in _surely(matching.removed, base, head):
        if _stays(gone, [old for old, _ in matching.pairs]):
            yield Change("ops", 1.0, f"{gone.type} computes nothing itself any more", fqn=gone.fqn, base=gone.type)
        else:
            yield Change("layers_removed", 1.0, f"{_what(gone)} is gone", fqn=gone.fqn, base=gone.type)
    for come in _surely(matching.added, head, base):
        if _stays(come, [new for _, new in matching.pairs]):
            yield Change("ops", 1.0, f"{come.type} computes between its modules now", fqn=come.fqn, head=come.type)
        else:
            yield Change("layers_added", 1.0, f"{_what(come)} is new", fqn=come.fqn, head=come.type)


def _renaming(old: str, new: str) -> str:
    """`fc2 became down`, without what is the same around it: one sentence for all layers that were renamed alike. A
    number keeps the name before it."""
    was, now = old.split("."), new.split(".")
    while min(len(was), len(now)) > 1 and was[-1] == now[-1]:
        was, now = was[:-1], now[:-1]
    same = len(shared_start([was[:-1], now[:-1]]))
    if was[same].isdigit() or now[same].isdigit():
        same = max(0, same - 1)
    return f"{'.'.join(was[same:]) or WHOLE} became {'.'.join(now[same:]) or WHOLE}"


def _surely(layers: Sequence[Layer], report: Report, other: Report) -> list[Layer]:
    """Without those that the other report's plan, which names every module, has too, and that seldom ran in this one:
    a branch that the data chooses."""
    return [layer for layer in layers if layer.fqn not in other.plan.modules or not _is_seldom(layer.calls, report)]


def _is_seldom(calls: int, report: Report) -> bool:
    """Whether it ran in so few of the steps looked at that a run like it may have it in none."""
    steps = report.job.get("audited_steps")
    return isinstance(steps, int) and calls < min(SELDOM, steps)


def _stays(layer: Layer, in_both: Sequence[Layer]) -> bool:
    """Whether the module contains layers of both reports, and is recorded only where it computes itself."""
    inside = f"{layer.fqn}." if layer.fqn else ""
    return not layer.parameters and any(other.fqn.startswith(inside) for other in in_both)


def _what(layer: Layer) -> str:
    return f"{layer.type} with {plural(layer.parameters, 'parameter')}" if layer.parameters else layer.type


def op_changes(base: Report, head: Report, names: Mapping[str, str]) -> Iterator[Change]:
    """Layers known to both reports whose set of operations differs."""
    old, new = _calls_of(base.ops, names), _calls_of(head.ops, {})
    for fqn in new:
        if fqn in old:
            gone, come = _only(old[fqn], new[fqn], base), _only(new[fqn], old[fqn], head)
            if gone or come:
                yield Change("ops", 1.0, _calls(gone, come), fqn=fqn, base=gone or None, head=come or None)


def _only(calls: Mapping[str, int], others: Mapping[str, int], report: Report) -> str:
    found = calls.keys() - others.keys()
    return ", ".join(sorted(op for op in found if not _is_seldom(calls[op], report)))


def _calls(gone: str, come: str) -> str:
    if gone and come:
        return f"calls {come} in place of {gone}"
    return f"calls {come} as well" if come else f"calls {gone} no more"


def _calls_of(ops: Sequence[Op], names: Mapping[str, str]) -> dict[str, Counter[str]]:
    by_layer: dict[str, Counter[str]] = defaultdict(Counter)
    for op in ops:
        by_layer[names.get(op.fqn, op.fqn)][op.op] += op.calls
    return by_layer


def dtype_changes(pairs: LayerPairs, ops: OpPairs) -> Iterator[Change]:
    """One change a layer and pair of dtypes, where its values or operations run in another dtype as written: a cast or
    autocast that came or went."""
    moved: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for base, head in pairs:
        for old, new in paired_records(base, head):
            if old.dtype != new.dtype:
                name = "" if new.name == new.role else new.name
                moved[head.fqn, old.dtype, new.dtype].append(f"{new.role} {name}".rstrip())
    for before_op, after_op in ops:
        before, after = _as_written(before_op), _as_written(after_op)
        if before != after:
            moved[after_op.fqn, before, after].append(after_op.op)
    for (fqn, before, after), parts in moved.items():
        yield Change("dtypes", 1.0, f"{before} became {after} ({', '.join(parts)})", fqn=fqn, base=before, head=after)


def _as_written(op: Op) -> str:
    """The dtype that the script asks for: its autocast's, but for operations that autocast runs in float32."""
    return op.autocast if op.autocast and op.category != "fp32" else op.dtype


def constant_changes(ops: OpPairs) -> Iterator[Change]:
    """Operations with another scalar argument, such as an eps."""
    for base, head in ops:
        old, new = _constant(base), _constant(head)
        if old and new and old != new:
            moved = abs(math.log2(new) - math.log2(old))
            message = f"its constant {old:.3g} became {new:.3g}"
            yield Change("constants", moved, message, fqn=head.fqn, op=head.op, base=old, head=new)


def _constant(op: Op) -> float | None:
    """The one scalar argument of all calls: where calls differ in it, runs of other seeds may too."""
    return op.constants[0] if op.constants and 0 < op.constants[0] == op.constants[1] else None


def alignment_changes(pairs: LayerPairs, ops: OpPairs) -> Iterator[Change]:
    """Dimensions of the model that Tensor Cores took and no longer take whole.

    A dimension that only the data sets (sequence length, batch) may differ by seed, so one counts only in a
    layer that was resized, or in the ratio by which some layer was (a tied head computes with another's weight).
    """
    resized = {
        head.fqn: _scale(base.parameters, head.parameters) for base, head in pairs if base.parameters != head.parameters
    }
    for base, head in ops:
        for old, new in sorted(set(_dimensions(base, head))):
            explained = head.fqn in resized or _scale(old, new) in resized.values()
            if explained and old % ALIGNED == 0 and new % ALIGNED:
                message = f"a dimension of {old} became {new}, no multiple of {ALIGNED}: pad it for Tensor Cores"
                yield Change("alignment", 1.0, message, fqn=head.fqn, op=head.op, base=old, head=new)


def _dimensions(base: Op, head: Op) -> Iterator[tuple[int, int]]:
    for old, new in zip(base.shapes, head.shapes, strict=False):
        if len(old) == len(new):
            yield from zip(old, new, strict=True)


def _scale(base: int, head: int) -> Fraction | None:
    return Fraction(base, head) if head else None
