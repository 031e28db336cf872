"""Changes of layers, operations and dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from precaudit.comparison.changes import Change
from precaudit.comparison.matching import Matching
from precaudit.comparison.tensors import LayerPairs, OpPairs, paired_records
from precaudit.model import Layer, Op

ALIGNED = 8  # elements of 16 bits that Tensor Cores want in a dimension


def layer_changes(matching: Matching) -> Iterator[Change]:
    """Layers replaced, resized, removed, added and renamed."""
    for base, head in matching.pairs:
        if base.type != head.type:
            message = f"{base.type} became {head.type}"
            yield Change("layers_replaced", 1.0, message, fqn=head.fqn, base=base.type, head=head.type)
        if base.parameters != head.parameters:
            message = f"{base.parameters:,} parameters became {head.parameters:,}"
            yield Change("layers_resized", 1.0, message, fqn=head.fqn, base=base.parameters, head=head.parameters)
        if base.fqn != head.fqn:
            message = f"was {base.fqn}: a plan or checkpoint that names it no longer fits"
            yield Change("layers_renamed", 1.0, message, fqn=head.fqn, base=base.fqn, head=head.fqn)
    for gone in matching.removed:
        if _stays(gone, [base for base, _ in matching.pairs]):
            yield Change("ops", 1.0, f"{gone.type} computes nothing itself any more", fqn=gone.fqn, base=gone.type)
        else:
            yield Change("layers_removed", 1.0, f"{_what(gone)} is gone", fqn=gone.fqn, base=gone.type)
    for come in matching.added:
        if _stays(come, [head for _, head in matching.pairs]):
            yield Change("ops", 1.0, f"{come.type} computes between its modules now", fqn=come.fqn, head=come.type)
        else:
            yield Change("layers_added", 1.0, f"{_what(come)} is new", fqn=come.fqn, head=come.type)


def _stays(layer: Layer, in_both: Sequence[Layer]) -> bool:
    """Whether the module contains layers of both reports, and is recorded only where it computes itself."""
    inside = f"{layer.fqn}." if layer.fqn else ""
    return not layer.parameters and any(other.fqn.startswith(inside) for other in in_both)


def _what(layer: Layer) -> str:
    return f"{layer.type} with {layer.parameters:,} parameters"


def op_changes(base: Sequence[Op], head: Sequence[Op], names: Mapping[str, str]) -> Iterator[Change]:
    """Layers known to both reports whose set of operations differs."""
    old, new = _op_names(base, names), _op_names(head, {})
    for fqn in new:
        if fqn in old and old[fqn] != new[fqn]:
            gone, come = (", ".join(sorted(side)) for side in (old[fqn] - new[fqn], new[fqn] - old[fqn]))
            yield Change("ops", 1.0, _calls(gone, come), fqn=fqn, base=gone or None, head=come or None)


def _calls(gone: str, come: str) -> str:
    if gone and come:
        return f"calls {come} in place of {gone}"
    return f"calls {come} as well" if come else f"calls {gone} no more"


def _op_names(ops: Sequence[Op], names: Mapping[str, str]) -> dict[str, set[str]]:
    by_layer: dict[str, set[str]] = defaultdict(set)
    for op in ops:
        by_layer[names.get(op.fqn, op.fqn)].add(op.op)
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
