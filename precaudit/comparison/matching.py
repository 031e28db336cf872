"""Matches the layers of two reports, even if names or types have changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from precaudit.comparison.ranges import center
from precaudit.model import Layer

# A structural match costs its distance in position, range and name, each about 1 when it speaks against the
# match; two of three must agree. Layers of another type or size never match by structure.
ACCEPTED = 1.25
POSITION_REACH = 4.0  # layers, or a tenth of the model where that is more
RANGE_REACH = 8.0  # binades
RENAMED_LEAF = 0.5
_TIE = 1e-6
MAX_GROUP = 1000  # layers of one kind that are assigned at once; more are cut into pieces in order
FINGERPRINT_ROLES = ("weight", "activation", "activation_grad")


@dataclass(frozen=True)
class Matching:
    """`pairs` in the order of base; a pair may differ in name, type or size."""

    pairs: tuple[tuple[Layer, Layer], ...]
    added: tuple[Layer, ...]
    removed: tuple[Layer, ...]

    @property
    def names(self) -> Mapping[str, str]:
        """Name in base to name in head."""
        return {old.fqn: new.fqn for old, new in self.pairs}


def match_layers(base: Sequence[Layer], head: Sequence[Layer]) -> Matching:
    """Match by name, type and size; then by structure; then by name alone (a layer replaced or resized)."""
    pairs = _same(base, head, lambda layer: (layer.fqn, layer.type, layer.parameters), {})
    pairs |= _by_structure(base, head, pairs)
    pairs |= _same(base, head, lambda layer: layer.fqn, pairs)
    taken = set(pairs.values())
    return Matching(
        pairs=tuple((base[i], head[pairs[i]]) for i in sorted(pairs)),
        added=tuple(layer for j, layer in enumerate(head) if j not in taken),
        removed=tuple(layer for i, layer in enumerate(base) if i not in pairs),
    )


def _same(base: Sequence[Layer], head: Sequence[Layer], key: Any, done: Mapping[int, int]) -> dict[int, int]:
    taken = set(done.values())
    places = {key(layer): j for j, layer in reversed(list(enumerate(head))) if j not in taken}
    pairs = {}
    for i, layer in enumerate(base):
        if i not in done and key(layer) in places:
            pairs[i] = places.pop(key(layer))
    return pairs


def _by_structure(base: Sequence[Layer], head: Sequence[Layer], done: Mapping[int, int]) -> dict[int, int]:
    free_base = _groups(base, done.keys())
    free_head = _groups(head, done.values())
    places = _positions(len(base), len(head), done)
    pairs: dict[int, int] = {}
    for kind in free_base.keys() & free_head.keys():
        rows, columns = free_base[kind], free_head[kind]
        pieces = -(-max(len(rows), len(columns)) // MAX_GROUP)
        for r, c in zip(np.array_split(rows, pieces), np.array_split(columns, pieces), strict=True):
            if len(r) and len(c):
                pairs |= _assign(base, head, (r, c), places)
    return pairs


def _assign(
    base: Sequence[Layer], head: Sequence[Layer], free: tuple[Any, Any], places: tuple[Any, Any]
) -> dict[int, int]:
    """The cheapest one-to-one assignment of the free layers of one type and size."""
    rows, columns = free
    to_head, to_base = places
    moved = np.abs(to_head[rows][:, None] - columns) + np.abs(rows[:, None] - to_base[columns])
    old, new = [base[i] for i in rows], [head[j] for j in columns]
    reach = max(POSITION_REACH, max(len(base), len(head)) / 10)
    cost = moved / 2 / reach + _range_cost(old, new) + RENAMED_LEAF * _other_leaf(old, new)
    # Capped, so that one impossible pair can't push good ones aside. Of equally good assignments the one with more
    # pairs, in whichever order the reports are compared.
    chosen = linear_sum_assignment(np.minimum(cost, 2 * ACCEPTED) + _TIE * (cost > ACCEPTED))
    return {int(rows[r]): int(columns[c]) for r, c in zip(*chosen, strict=True) if cost[r, c] <= ACCEPTED}


def _other_leaf(base: Sequence[Layer], head: Sequence[Layer]) -> Any:
    """Whether the last part of the name differs: blocks.0.fc1 and layers.0.fc1 share theirs."""
    old, new = (np.array([layer.fqn.rsplit(".", 1)[-1] for layer in side]) for side in (base, head))
    return old[:, None] != new


def _groups(layers: Sequence[Layer], done: Iterable[int]) -> dict[tuple[str, int], list[int]]:
    matched = set(done)
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, layer in enumerate(layers):
        if i not in matched:
            groups[layer.type, layer.parameters].append(i)
    return groups


def _positions(n_base: int, n_head: int, done: Mapping[int, int]) -> tuple[Any, Any]:
    """The expected position of each layer of one report in the other, interpolated between matched layers."""
    anchors = np.array([(-1, -1), *sorted(done.items()), (n_base, n_head)])
    back = anchors[np.argsort(anchors[:, 1])]
    return (
        np.interp(np.arange(n_base), anchors[:, 0], anchors[:, 1]),
        np.interp(np.arange(n_head), back[:, 1], back[:, 0]),
    )


def _range_cost(base: Sequence[Layer], head: Sequence[Layer]) -> Any:
    """Mean distance of the histograms' centers over the roles that both measured, 1 at `RANGE_REACH`."""
    old, new = (np.array([_centers(layer) for layer in layers]) for layers in (base, head))
    apart = np.minimum(np.abs(old[:, None, :] - new[None, :, :]) / RANGE_REACH, 1.0)
    measured = np.maximum(1, np.isfinite(apart).sum(axis=2))
    return np.nansum(apart, axis=2) / measured


def _centers(layer: Layer) -> list[float]:
    records = (layer.tensor(role) for role in FINGERPRINT_ROLES)
    centers = (center(record.stats) if record else None for record in records)
    return [np.nan if value is None else value for value in centers]
