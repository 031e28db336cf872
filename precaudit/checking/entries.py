"""Outputs with lists of entries that the model selects or sorts by value, such as a detector's boxes.

Rounding may swap two nearly tied entries, and add or drop one at a threshold, so that lists are compared as sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment

from precaudit.checking.inputs import Call
from precaudit.formats import LOCAL_ERROR_LIMIT
from precaudit.instrument.torch_function import tensors_in

MOST_COMPARISONS = 2**24
MOST_COLUMNS = 64


@dataclass(frozen=True)
class Pair:
    """An output under the plan, and float32's. Of `entries`, `unpaired` have no counterpart on the other side."""

    got: torch.Tensor
    wanted: torch.Tensor
    listed: bool = False
    entries: int = 0
    unpaired: int = 0


def paired(outputs: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], call: Call) -> dict[str, Pair]:
    """Each output by its path; those in one container that list the same entries are brought into the same order."""
    given = frozenset(size for tensor in tensors_in(call) for size in tensor.shape)
    groups: dict[str, dict[str, Pair]] = {}
    for name in wanted.keys() & outputs.keys():
        groups.setdefault(name.rpartition(".")[0], {})[name] = Pair(outputs[name], wanted[name])
    return {name: pair for group in groups.values() for name, pair in _in_order(group, given).items()}


def _in_order(group: dict[str, Pair], given: frozenset[int]) -> dict[str, Pair]:
    for shape in filter(None, (_list_shape(group[name], given) for name in sorted(group))):
        members = {name: pair for name, pair in group.items() if _lists(pair, shape)}
        if all(pair.got.isfinite().all() and pair.wanted.isfinite().all() for pair in members.values()):
            return group | _matched(members, shape)
    return group


def _list_shape(pair: Pair, given: frozenset[int]) -> torch.Size | None:
    """float32's shape up to the dimension that lists entries: its size differs under the plan, or both outputs are
    sorted along it (by the output or one of its columns). Constant scores count as sorted if their number is the
    model's choice and no size of its inputs."""
    got, wanted = pair.got, pair.wanted
    if not wanted.dim() or got.shape[1:] != wanted.shape[1:]:
        return None
    if len(got) != len(wanted):
        return wanted.shape[:1]
    if bool(_sorted(got, wanted, -1, given).all()):
        return wanted.shape
    if wanted.dim() > 1 and bool(_sorted(got, wanted, -2, given).flatten(0, -2).all(0).any()):
        return wanted.shape[:-1]
    return None


def _sorted(got: torch.Tensor, wanted: torch.Tensor, dim: int, given: frozenset[int]) -> torch.Tensor:
    """Whether both outputs, of equal size in a dimension, decrease along it."""
    steps = wanted.diff(dim=dim)
    falls = (steps <= 0) & (got.diff(dim=dim) <= 0)
    return falls.all(dim, keepdim=True) & ((steps < 0).any(dim, keepdim=True) | (wanted.shape[dim] not in given))


def _lists(pair: Pair, shape: torch.Size) -> bool:
    return pair.wanted.shape[: len(shape)] == shape and pair.got.shape[1:] == pair.wanted.shape[1:]


def _matched(members: dict[str, Pair], shape: torch.Size) -> dict[str, Pair]:
    """The members with their entries stacked in float32's order, without entries that have no counterpart."""
    lists = shape[:-1].numel()
    wanted = {name: _entries(pair.wanted, shape) for name, pair in members.items()}
    got = {name: _entries(pair.got, shape) for name, pair in members.items()}
    first = min(members)
    counts = len(wanted[first]) // lists, len(got[first]) // lists
    if lists * counts[0] * counts[1] > MOST_COMPARISONS:
        return members
    rows, columns = _alike(_features(wanted, wanted, lists), _features(got, wanted, lists))
    entries = lists * max(counts)
    pairs = {name: Pair(got[name][columns], wanted[name][rows], listed=True) for name in members}
    return pairs | {first: replace(pairs[first], entries=entries, unpaired=entries - len(rows))}


def _entries(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """One row per entry, over all lists."""
    return values.double().cpu().flatten(0, len(shape) - 1).unsqueeze(-1).flatten(1)


def _features(values: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], lists: int) -> torch.Tensor:
    """For each list and entry, some values of all outputs, in units of each output's rms in float32."""
    columns = []
    for name, rows in values.items():
        rms = float(wanted[name].square().mean().sqrt()) if wanted[name].numel() else 0.0
        columns.append(rows[:, :: max(1, rows.shape[1] // MOST_COLUMNS)] / (rms or 1.0))
    return torch.cat(columns, -1).unflatten(0, (lists, len(columns[0]) // lists))


def _alike(wanted: torch.Tensor, got: torch.Tensor) -> tuple[list[int], list[int]]:
    """Matching entries of float32 and the plan: at most a quarter of the rms apart."""
    distances = torch.cdist(wanted, got) / wanted.shape[-1] ** 0.5
    pairs = [
        (index * wanted.shape[1] + row, index * got.shape[1] + column)
        for index, cost in enumerate(distances.numpy())
        for row, column in zip(*linear_sum_assignment(cost), strict=True)
        if cost[row, column] <= LOCAL_ERROR_LIMIT
    ]
    return [row for row, _ in pairs], [column for _, column in pairs]
