"""Which op and which module a kernel belongs to.

A kernel is joined to the call that launched it by correlation number, the call to the innermost op around it on the
same thread, and the op to the innermost module. An op of the backward pass runs on a thread of autograd's own: it
takes the module of the forward op that a flow arrow comes from, or else of the one with its sequence number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from precaudit.tensorcores.traces import Floats, Intervals, Ints, Trace

NOT_LAUNCHED = "launched before the recording"
OPTIMIZER = "optimizer"
COMMUNICATION = "communication"
ACCUMULATION = "gradient accumulation"
OUTSIDE = "outside modules"
UNATTRIBUTED = "unattributed"


@dataclass(frozen=True)
class Nesting:
    """Intervals with the parent of each: the innermost one around it on its thread, -1 where there is none."""

    intervals: Intervals
    order: Ints
    parent: Ints

    def innermost(self, thread: Ints, at: Floats) -> Ints:
        """For every (thread, time) the innermost interval around it, -1 where there is none."""
        found = np.full(len(at), -1, dtype=np.int64)
        for number in np.unique(thread):
            mine = self.order[self.intervals.thread[self.order] == number]
            if len(mine):
                asked = thread == number
                found[asked] = self._climb(mine, at[asked])
        return found

    def _climb(self, mine: Ints, at: Floats) -> Ints:
        before = np.searchsorted(self.intervals.start[mine], at, side="right") - 1
        candidate = np.where(before >= 0, mine[before], -1)
        while len(over := np.flatnonzero((candidate >= 0) & (self.intervals.end[candidate] < at))):
            candidate[over] = self.parent[candidate[over]]
        return candidate


def nest(intervals: Intervals) -> Nesting:
    """One pass over the intervals by start, keeping the open ones on a stack a thread."""
    order = np.lexsort((-intervals.end, intervals.start, intervals.thread))
    parent = np.full(len(intervals), -1, dtype=np.int64)
    threads, starts, ends = (column[order].tolist() for column in (intervals.thread, intervals.start, intervals.end))
    parents, open_ones, thread = [-1] * len(order), list[int](), None
    for i, start in enumerate(starts):
        if threads[i] != thread:
            thread, open_ones = threads[i], []
        while open_ones and ends[open_ones[-1]] <= start:
            open_ones.pop()
        if open_ones:
            parents[i] = open_ones[-1]
        open_ones.append(i)
    above = np.array(parents, dtype=np.int64)
    if len(order):
        parent[order] = np.where(above >= 0, order[above], -1)
    return Nesting(intervals, order, parent)


@dataclass(frozen=True)
class Attribution:
    """Per kernel: the op (index into the trace's ops) and the owner (index into `owners`), -1 where there is none.

    An owner is a module, by its name in the trace, or one of the buckets above.
    """

    op: Ints
    owner: Ints
    owners: tuple[str, ...]
    is_module: npt.NDArray[np.bool_]
    launched: npt.NDArray[np.bool_]


def attribute(trace: Trace) -> Attribution:
    launch = _launch_of(trace)
    launched = launch >= 0
    # One launch more at the end, for those that are not in the trace.
    threads, times = (np.append(column, 0)[launch] for column in (trace.launches.thread, trace.launches.start))
    ops, scopes = nest(trace.ops), nest(trace.scopes)

    def around(nesting: Nesting) -> Ints:
        return np.where(launched, nesting.innermost(threads, times), -1)

    op = around(ops)
    scope = _kernel_scope(trace, op, around(scopes), _op_scopes(trace, ops, scopes))
    buckets = {
        NOT_LAUNCHED: ~launched,
        COMMUNICATION: _named(trace, "nccl")[trace.kernels.name],
        OPTIMIZER: around(nest(_only(trace, trace.marks, "Optimizer."))) >= 0,
        ACCUMULATION: around(nest(_only(trace, trace.ops, "AccumulateGrad"))) >= 0,
        OUTSIDE: op >= 0,
        UNATTRIBUTED: np.ones(len(op), dtype=bool),
    }
    first = len(trace.names)
    owner = np.select(list(buckets.values()), list(range(first, first + len(buckets))))
    in_module = launched & (scope >= 0)
    owner[in_module] = trace.scopes.name[scope[in_module]]
    return Attribution(op, owner, (*trace.names, *buckets), in_module, launched)


def _launch_of(trace: Trace) -> Ints:
    """The launch with the kernel's correlation number, -1 where the trace holds none."""
    launches = trace.launches.correlation
    if not len(launches):
        return np.full(len(trace.kernels.name), -1, dtype=np.int64)
    order = np.argsort(launches, kind="stable")
    at = np.searchsorted(launches[order], trace.kernels.correlation).clip(max=len(order) - 1)
    found = order[at]
    matches = (launches[found] == trace.kernels.correlation) & (trace.kernels.correlation >= 0)
    return np.where(matches, found, -1)


def _kernel_scope(trace: Trace, op: Ints, own: Ints, op_scope: Ints) -> Ints:
    """The scope of the op, or the launch's own where that opened inside the op, as in a custom function."""
    if not len(trace.scopes):
        return np.full(len(op), -1, dtype=np.int64)
    if not len(trace.ops):
        return own
    inside = (own >= 0) & (trace.scopes.start[own] >= trace.ops.start[op])
    return np.where((op < 0) | inside, own, op_scope[op])


def _op_scopes(trace: Trace, ops: Nesting, scopes: Nesting) -> Ints:
    """The scope of every op: its forward op's, else the one opened since its parent op began, else its parent's."""
    own = scopes.innermost(trace.ops.thread, trace.ops.start)
    forward = _forward_scopes(trace, ops, scopes, own)
    opened = np.where(own >= 0, trace.scopes.start[own] if len(trace.scopes) else 0.0, -np.inf)
    parent, began = ops.parent.tolist(), trace.ops.start.tolist()
    result = own.tolist()
    for i, mapped, since in zip(
        ops.order.tolist(), forward[ops.order].tolist(), opened[ops.order].tolist(), strict=True
    ):
        above = parent[i]
        if mapped >= 0:
            result[i] = mapped
        elif above >= 0 and since < began[above]:
            result[i] = result[above]
    return np.array(result, dtype=np.int64)


def _forward_scopes(trace: Trace, ops: Nesting, scopes: Nesting, own: Ints) -> Ints:
    """For every op of the backward pass the scope of the forward op it came from, -1 for all others."""
    found = np.full(len(trace.ops), -1, dtype=np.int64)
    flows = trace.flows
    source, target = np.flatnonzero(flows.is_source), np.flatnonzero(~flows.is_source)
    _, first, second = np.intersect1d(flows.id[source], flows.id[target], return_indices=True)
    source, target = source[first], target[second]
    backward = ops.innermost(flows.thread[target], flows.start[target])
    scope = scopes.innermost(flows.thread[source], flows.start[source])
    backward, scope = backward[backward >= 0], scope[backward >= 0]
    found[backward] = scope
    caller = ops.parent[backward]  # autograd's own frame around the op, with the same number
    same = (caller >= 0) & (trace.sequence[backward] >= 0) & (trace.sequence[caller] == trace.sequence[backward])
    found[caller[same]] = scope[same]

    numbered = trace.sequence >= 0
    sources = np.flatnonzero(numbered & ~trace.backward)
    latest_first = sources[np.lexsort((-trace.ops.start[sources], trace.sequence[sources]))]
    numbers, at = np.unique(trace.sequence[latest_first], return_index=True)
    targets = np.flatnonzero(numbered & trace.backward)
    if len(numbers) and len(targets):
        where = np.searchsorted(numbers, trace.sequence[targets]).clip(max=len(numbers) - 1)
        # Every thread counts for itself: where a forward pass is repeated on autograd's thread, only arrows tell.
        alone = (numbers[where] == trace.sequence[targets]) & (found[targets] < 0)
        found[targets[alone]] = own[latest_first[at[where[alone]]]]
    return found


def _only(trace: Trace, intervals: Intervals, part: str) -> Intervals:
    chosen = np.flatnonzero(_named(trace, part)[intervals.name])
    return Intervals(*(getattr(intervals, field.name)[chosen] for field in fields(intervals)))


def _named(trace: Trace, part: str) -> npt.NDArray[np.bool_]:
    return np.array([part in name for name in trace.names], dtype=bool)
