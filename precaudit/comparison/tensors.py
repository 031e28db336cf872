"""Tensors of matched layers, paired, in the order of cause."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from precaudit.comparison.changes import Change, Scalar
from precaudit.comparison.noise import independent_values
from precaudit.model import Layer, Op, TensorRecord

# Weights move by themselves, activations follow forward, gradients backward.
CAUSAL_ROLES = ("weight", "activation", "activation_grad", "weight_grad", "update", "optimizer_state")
BACKWARD_ROLES = frozenset(CAUSAL_ROLES[2:])

T = TypeVar("T")
LayerPairs = Sequence[tuple[Layer, Layer]]
OpPairs = Sequence[tuple[Op, Op]]


@dataclass(frozen=True)
class TensorPair:
    """One tensor of one layer or op in both reports; `values` is the smaller number of independent values."""

    fqn: str
    base: TensorRecord
    head: TensorRecord
    values: float
    values_in_base: float
    op: str | None = None

    def change(self, metric: str, value: float, message: str, base: Scalar = None, head: Scalar = None) -> Change:
        role, name = self.head.role, self.head.name
        return Change(metric, value, message, self.fqn, self.op, role, name, base, head)


def layer_tensors(pairs: LayerPairs) -> Iterator[TensorPair]:
    """The likeliest cause first: by role, and within it as values flow."""
    for role in CAUSAL_ROLES:
        for base, head in reversed(pairs) if role in BACKWARD_ROLES else pairs:
            yield from _tensors(base, head, role)


def op_tensors(pairs: OpPairs) -> Iterator[TensorPair]:
    for base, head in pairs:
        yield from _tensors(base, head, "activation")


def _tensors(base: Layer | Op, head: Layer | Op, role: str) -> Iterator[TensorPair]:
    calls = max(base.calls, head.calls)
    op = head.op if isinstance(head, Op) else None
    for old, new in paired_records(base, head):
        if new.role == role:
            in_base, in_head = (independent_values(side.stats, calls) for side in (old, new))
            yield TensorPair(head.fqn, old, new, min(in_base, in_head), in_base, op)


def paired_records(base: Layer | Op, head: Layer | Op) -> list[tuple[TensorRecord, TensorRecord]]:
    return in_order(base.tensors, head.tensors, lambda record: (record.role, record.name))


def paired_ops(base: Sequence[Op], head: Sequence[Op], names: Mapping[str, str]) -> list[tuple[Op, Op]]:
    """Operations of one name in one layer, paired in the order in which they were first called."""
    return in_order((replace(op, fqn=names.get(op.fqn, op.fqn)) for op in base), head, lambda op: (op.fqn, op.op))


def in_order(base: Iterable[T], head: Iterable[T], key: Callable[[T], Hashable]) -> list[tuple[T, T]]:
    """Pairs of equal key, first with first: several things may go by one name."""
    waiting: dict[Hashable, deque[T]] = defaultdict(deque)
    for item in base:
        waiting[key(item)].append(item)
    return [(waiting[key(item)].popleft(), item) for item in head if waiting[key(item)]]


def absent(pairs: LayerPairs) -> Iterator[Change]:
    """Tensors of base that head did not measure, though it measured their role elsewhere: a layer cut off or frozen.

    Optimizer states are left out: another optimizer has others everywhere.
    """
    measured = {record.role for _, head in pairs for record in head.tensors} - {"optimizer_state"}
    for base, head in pairs:
        present = {(record.role, record.name) for record in head.tensors}
        for record in base.tensors:
            if record.role in measured and (record.role, record.name) not in present:
                pair = TensorPair(head.fqn, record, record, 1.0, 1.0)
                yield pair.change("vanished", 1.0, "measured in base, not in head")


def unmeasured_roles(pairs: LayerPairs) -> list[str]:
    """Roles that only one of the reports measured anywhere."""
    base, head = ({record.role for pair in pairs for record in pair[side].tensors} for side in (0, 1))
    return sorted(base ^ head)
