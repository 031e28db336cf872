"""Merges the traces of several processes. Every record merges associatively, so their order doesn't matter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import TypeVar

import torch.distributed as dist

from precaudit.histograms import fits
from precaudit.model import Layer, Op, TensorRecord
from precaudit.tracing.extremes import largest, largest_by_name, widest
from precaudit.tracing.records import Trace

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
        ops=_joined((t.ops for t in traces), lambda op: (op.fqn, op.op), _op),
        maxima=tuple(sorted(peaks.items())),
        audited_steps=max(t.audited_steps for t in traces),
        low_dtypes=_united(t.low_dtypes for t in traces),
        models=_united(t.models for t in traces),
        leaves=_united(t.leaves for t in traces),
        unseen=tuple(fqn for fqn in traces[0].unseen if all(fqn in t.unseen for t in traces)),
        faults=tuple(sorted((f for t in traces for f in t.faults), key=lambda fault: fault.step)),
        bypassed={fqn: place for trace in traces for fqn, place in trace.bypassed.items()},
    )


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


def _op(one: Op, other: Op) -> Op:
    return replace(
        one,
        calls=one.calls + other.calls,
        tensors=_tensors(one.tensors, other.tensors),
        input_amax=largest((one.input_amax, other.input_amax)),
        local_error=largest_by_name((one.local_error, other.local_error)),
        half=one.half or other.half,
        constants=widest((one.constants, other.constants)),
        integer_amax=largest((one.integer_amax, other.integer_amax)),
        follows_dtype=one.follows_dtype or other.follows_dtype,
        half_amax=largest((one.half_amax, other.half_amax)),
        places={**other.places, **one.places},
    )


def _tensors(these: tuple[TensorRecord, ...], those: tuple[TensorRecord, ...]) -> tuple[TensorRecord, ...]:
    return _joined((these, those), lambda record: (record.role, record.name), _tensor)


def _tensor(one: TensorRecord, other: TensorRecord) -> TensorRecord:
    stats = one.stats.merge(other.stats)
    return replace(one, stats=stats, formats=fits(stats, one.formats))
