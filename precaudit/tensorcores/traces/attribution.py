"""Which op and which module a kernel belongs to.

A kernel is joined to the call that launched it by correlation number, the call to the innermost op around it on the
same thread, and the op to the innermost module. An op of the backward pass runs on a thread of autograd's own: it
takes the module of the forward op that a flow arrow comes from, or else of the one with its sequence number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from precaudit.tensorcores.traces.trace import Floats, Intervals, Ints, ProfilerTrace

NOT_LAUNCHED = "launch not recorded"
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
        by_thread, held = np.argsort(thread, kind="stable"), self.intervals.thread[self.order]
        numbers, first = np.unique(thread[by_thread], return_index=True)
        begin, end = np.searchsorted(held, numbers, side="left"), np.searchsorted(held, numbers, side="right")
        for asked, low, high in zip(np.split(by_thread, first)[1:], begin.tolist(), end.tolist(), strict=True):
            if low < high:
                found[asked] = self._climb(self.order[low:high], at[asked])
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


def attribute(trace: ProfilerTrace) -> Attribution:
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


def _launch_of(trace: ProfilerTrace) -> Ints:
    """The latest launch before the kernel with its correlation number, or one after it, where clocks differ; -1 where
    the trace holds none."""
    launches, kernels = trace.launches, trace.kernels
    count, total = len(launches.correlation), len(launches.correlation) + len(kernels.name)
    process = np.concatenate([trace.processes[launches.thread], _launching_process(trace)])
    known = np.concatenate([launches.correlation, kernels.correlation])
    number = np.where(known >= 0, _apart(known, process), -1)
    order = np.lexsort((np.concatenate([launches.start, kernels.start]), number))
    place = np.where(order < count, np.arange(total), -1)
    before = np.maximum.accumulate(place)
    after = np.minimum.accumulate(np.where(place < 0, total - 1, place)[::-1])[::-1]
    found = np.full(total, -1, dtype=np.int64)
    for near in (after, before):
        near = order[near.clip(min=0)]
        fits = (near < count) & (number[near] == number[order]) & (number[order] >= 0)
        found[order[fits]] = near[fits]
    return found[count:]


def _launching_process(trace: ProfilerTrace) -> Ints:
    """The process that launched each kernel. The kernels of one place are one process's: the one that launched most of
    their correlation numbers or, of several alike, one that has no place yet, as every rank has its own GPU."""
    process, places = trace.processes[trace.launches.thread], trace.kernels.place
    launches = {int(number): np.flatnonzero(process == number) for number in np.unique(process)}
    found, taken = np.full(len(places), min(launches, default=0), dtype=np.int64), set[int]()
    for place in np.unique(places) if len(launches) > 1 else ():
        mine = np.flatnonzero(places == place)
        fits = {number: _fit(trace, mine, theirs) for number, theirs in launches.items()}
        merits = {number: (known, number not in taken, *timely) for number, (known, *timely) in fits.items()}
        found[mine] = owner = max(merits, key=merits.__getitem__)
        taken.add(owner)
    return found


def _fit(trace: ProfilerTrace, kernels: Ints, launches: Ints) -> tuple[int, int, float]:
    """How many of the kernels have their number among the launches, how many came after it, and how soon."""
    by_number = launches[np.argsort(trace.launches.correlation[launches], kind="stable")]
    numbers, wanted = trace.launches.correlation[by_number], trace.kernels.correlation[kernels]
    near = np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)
    lag = (trace.kernels.start[kernels] - trace.launches.start[by_number[near]])[numbers[near] == wanted]
    after = lag[lag >= 0]
    return len(lag), len(after), -float(np.median(after)) if len(after) else 0.0


def _kernel_scope(trace: ProfilerTrace, op: Ints, own: Ints, op_scope: Ints) -> Ints:
    """The scope of the op, or the launch's own where that opened inside the op, as in a custom function."""
    if not len(trace.scopes):
        return np.full(len(op), -1, dtype=np.int64)
    if not len(trace.ops):
        return own
    inside = (own >= 0) & (trace.scopes.start[own] >= trace.ops.start[op])
    return np.where((op < 0) | inside, own, op_scope[op])


def _op_scopes(trace: ProfilerTrace, ops: Nesting, scopes: Nesting) -> Ints:
    """The scope of every op: its forward op's, else the one opened since its parent op began, else its parent's."""
    own = scopes.innermost(trace.ops.thread, trace.ops.start)
    opened = np.where(own >= 0, trace.scopes.start[own] if len(trace.scopes) else 0.0, -np.inf)
    forward, parent, began = _forward_ops(trace, ops).tolist(), ops.parent.tolist(), trace.ops.start.tolist()
    result, since = own.tolist(), opened.tolist()
    # By time, for a forward op may itself be part of a backward pass, as in the second one of a gradient penalty.
    for i in np.lexsort((-trace.ops.end, trace.ops.start)).tolist():
        above = parent[i]
        if forward[i] >= 0 and result[forward[i]] >= 0:
            result[i] = result[forward[i]]
        elif above >= 0 and since[i] < began[above]:
            result[i] = result[above]
    return np.array(result, dtype=np.int64)


def _forward_ops(trace: ProfilerTrace, ops: Nesting) -> Ints:
    """For every op of the backward pass the forward op that it came from, -1 for all others."""
    found = np.full(len(trace.ops), -1, dtype=np.int64)
    flows, process = trace.flows, trace.processes
    id_ = _apart(flows.id, process[flows.thread])
    source, target = np.flatnonzero(flows.is_source), np.flatnonzero(~flows.is_source)
    _, first, second = np.intersect1d(id_[source], id_[target], return_indices=True)
    source, target = source[first], target[second]
    backward = ops.innermost(flows.thread[target], flows.start[target])
    forward = ops.innermost(flows.thread[source], flows.start[source])[backward >= 0]
    backward = backward[backward >= 0]
    found[backward] = forward
    caller = ops.parent[backward]  # autograd's own frame around the op, with the same number
    same = (caller >= 0) & (trace.sequence[backward] >= 0) & (trace.sequence[caller] == trace.sequence[backward])
    found[caller[same]] = forward[same]

    sequence, numbered = _apart(trace.sequence, process[trace.ops.thread]), trace.sequence >= 0
    sources = np.flatnonzero(numbered & ~trace.backward)
    latest_first = sources[np.lexsort((-trace.ops.start[sources], sequence[sources]))]
    numbers, at = np.unique(sequence[latest_first], return_index=True)
    targets = np.flatnonzero(numbered & trace.backward)
    if len(numbers) and len(targets):
        where = np.searchsorted(numbers, sequence[targets]).clip(max=len(numbers) - 1)
        # Every thread counts for itself: where a forward pass is repeated on autograd's thread, only arrows tell.
        alone = (numbers[where] == sequence[targets]) & (found[targets] < 0)
        found[targets[alone]] = latest_first[at[where[alone]]]
    return found


def _apart(numbers: Ints, process: Ints) -> Ints:
    """Correlation numbers made unique over processes, which count them independently."""
    return numbers * (int(process.max(initial=0)) + 1) + process


def _only(trace: ProfilerTrace, intervals: Intervals, part: str) -> Intervals:
    chosen = np.flatnonzero(_named(trace, part)[intervals.name])
    return Intervals(*(getattr(intervals, field.name)[chosen] for field in fields(intervals)))


def _named(trace: ProfilerTrace, part: str) -> npt.NDArray[np.bool_]:
    return np.array([part in name for name in trace.names], dtype=bool)
