"""Merges the calls of an operation, and the traces of several processes. Every record merges associatively, so their
order doesn't matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import TypeVar

import torch.distributed as dist

from precaudit.histograms import fits
from precaudit.model import Layer, Location, Op, TensorRecord
from precaudit.tracing.extremes import largest, largest_by_name, widest
from precaudit.tracing.records import HalfResult, Trace

Record = TypeVar("Record", Layer, Op, TensorRecord)


def processes() -> int:
    """The size of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(trace: Trace) -> Trace:
    """The merged traces of all processes in the default process group, if there is one.

    A collective operation: all processes must call it, and all get the same trace.
    """
    if processes() == 1:
        return trace
    traces: list[Trace] = [trace] * processes()
    dist.all_gather_object(traces, trace)
    return merged(traces)


def merged(traces: Sequence[Trace]) -> Trace:
    """One trace: counts add, extremes combine; each step has the largest gradient of any process."""
    peaks: dict[int, float] = {}
    for step, peak in (item for trace in traces for item in trace.maxima):
        peaks[step] = max(peak, peaks.get(step, peak))
    return Trace(
        layers=_joined((t.layers for t in traces), lambda layer: layer.fqn, _layer),
        ops=_joined((t.ops for t in traces), lambda op: (op.fqn, op.op), merged_op),
        lines=_joined((t.lines for t in traces), lambda op: (op.fqn, op.op, op.location), merged_op),
        maxima=tuple(sorted(peaks.items())),
        audited_steps=max(t.audited_steps for t in traces),
        low_dtypes=_united(t.low_dtypes for t in traces),
        models=_united(t.models for t in traces),
        leaves=_united(t.leaves for t in traces),
        unseen=tuple(fqn for fqn in traces[0].unseen if all(fqn in t.unseen for t in traces)),
        faults=tuple(sorted((f for t in traces for f in t.faults), key=lambda fault: fault.step)),
        bypassed={fqn: place for trace in traces for fqn, place in trace.bypassed.items()},
    )


def with_half_results(trace: Trace, half_results: Collection[HalfResult]) -> Trace:
    """The trace with those operations marked as half that were so in a low-precision run. The dtype of
    `y.to(x.dtype)`, say, can't be seen in a float32 run, and may be another than that of the next line."""
    known = {(trace.name(model, fqn), op, line) for model, fqn, op, line in half_results}
    lines: dict[tuple[str, str], list[Op]] = {}
    for op in trace.lines:
        lines.setdefault((op.fqn, op.op), []).append(op)

    def marked(op: Op) -> Op:
        own = lines.get((op.fqn, op.op), [op])
        half = [_in_half(part) if (part.fqn, part.op, part.location) in known else part for part in own]
        return op if half == own else reduce(merged_op, half)

    return replace(trace, ops=tuple(map(marked, trace.ops)))


def _in_half(op: Op) -> Op:
    record = op.tensor("activation")
    return op if op.half or record is None else replace(op, half=True, half_amax=record.stats.amax)


def _united(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))


def _joined(
    groups: Iterable[Iterable[Record]],
    key: Callable[[Record], Hashable],
    join: Callable[[Record, Record], Record],
) -> tuple[Record, ...]:
    """Merge records with equal keys, in the order of first occurrence of the keys."""
    found: dict[Hashable, list[Record]] = {}
    for record in (record for group in groups for record in group):
        found.setdefault(key(record), []).append(record)
    return tuple(reduce(join, records) for records in found.values())


def _layer(one: Layer, other: Layer) -> Layer:
    return replace(
        one,
        calls=one.calls + other.calls,
        parameters=max(one.parameters, other.parameters),
        tensors=_tensors(one.tensors, other.tensors),
        trained=one.trained or other.trained,
        absorbed_update=largest_by_name((one.absorbed_update, other.absorbed_update)),
    )


def merged_op(one: Op, other: Op) -> Op:
    """One operation over the calls of both. Where only some have half results, the limits of a format apply to these
    only: float32 values may have any range."""
    calls, half = one.calls + other.calls, one.half or other.half
    counted = [op for op in (one, other) if op.half or not half]
    location = max(counted, key=_amax).location
    return replace(
        one,
        calls=calls,
        location=location,
        tensors=_tensors(one.tensors, other.tensors),
        input_amax=largest((one.input_amax, other.input_amax)),
        shapes=max(one, other, key=_work).shapes,
        flops=(_work(one) + _work(other)) / calls or None,
        local_error=largest_by_name([op.local_error for op in counted]),
        half=half,
        constants=widest(op.constants for op in counted),
        integer_amax=largest((one.integer_amax, other.integer_amax)),
        autocast=one.autocast or other.autocast,
        follows_dtype=one.follows_dtype or other.follows_dtype,
        half_amax=largest((one.half_amax, other.half_amax)),
        in_place=any(op.in_place for op in counted),
        places=_places(counted, location),
    )


def _work(op: Op) -> float:
    return (op.flops or 0.0) * op.calls


def _amax(op: Op) -> float:
    """The largest result; of those that are half where some are."""
    if op.half_amax is not None:
        return op.half_amax
    record = op.tensor("activation")
    return record.stats.amax if record else 0.0


def _places(ops: Iterable[Op], usual: Location | None) -> dict[str, Location]:
    """The line at which each measure is extreme, if not the `usual` one."""
    found: dict[str, tuple[float, Location]] = {}
    for op in ops:
        for measure, value in _measures(op):
            place = op.place(measure)
            if place is not None and (measure not in found or value > found[measure][0]):
                found[measure] = (value, place)
    return {measure: place for measure, (_, place) in found.items() if place != usual}


def _measures(op: Op) -> Iterator[tuple[str, float]]:
    """Measures that rules check, by name: the larger, the worse."""
    if op.input_amax is not None:
        yield "input", op.input_amax
    if op.integer_amax is not None:
        yield "whole", op.integer_amax
    if op.constants is not None:
        yield "smallest", -op.constants[0]
        yield "largest", op.constants[1]
    gradient = op.tensor("activation_grad")
    if gradient is not None and gradient.stats.amax:
        yield "gradient", gradient.stats.amax
    yield from op.local_error.items()


def _tensors(these: tuple[TensorRecord, ...], those: tuple[TensorRecord, ...]) -> tuple[TensorRecord, ...]:
    return _joined((these, those), lambda record: (record.role, record.name), _tensor)


def _tensor(one: TensorRecord, other: TensorRecord) -> TensorRecord:
    stats = one.stats.merge(other.stats)
    return replace(one, stats=stats, formats=fits(stats, one.formats))
