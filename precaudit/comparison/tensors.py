"""Tensors of matched layers, paired, in the order of cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from precaudit.comparison.changes import Change, Scalar
from precaudit.comparison.noise import independent_values
from precaudit.model import Layer, Op, TensorRecord

# Weights move by themselves, activations follow forward, gradients backward.
CAUSAL_ROLES = ("weight", "activation", "activation_grad", "weight_grad", "update", "optimizer_state")
BACKWARD_ROLES = frozenset(CAUSAL_ROLES[2:])

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
    named = {record.name: record for record in head.tensors if record.role == role}
    calls = max(base.calls, head.calls)
    op = head.op if isinstance(head, Op) else None
    for old in base.tensors:
        if old.role == role and old.name in named:
            new = named[old.name]
            in_base, in_head = (independent_values(side.stats, calls) for side in (old, new))
            yield TensorPair(head.fqn, old, new, min(in_base, in_head), in_base, op)


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
