"""A torch.profiler trace as columns: what the GPU ran, what launched it, and which op and module that was part of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from precaudit.errors import ExitCode, PrecauditError
from precaudit.tensorcores.traces.columns import BETWEEN, Columns, integer
from precaudit.tensorcores.traces.products import Arguments
from precaudit.tensorcores.traces.scanning import TraceFile

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


_TIMED = 0.5
"""With fewer of its kernels timed a trace says nothing of the others."""


@dataclass(frozen=True)
class Device:
    name: str
    capability: tuple[int, int] | None
    nvidia: bool = True


@dataclass(frozen=True)
class Intervals:
    """Named spans of time on threads of the CPU, in microseconds."""

    name: Ints
    thread: Ints
    start: Floats
    end: Floats

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class Kernels:
    """Kernels that ran: `start` in microseconds, `seconds` each, the `correlation` with the call that launched it, the
    `device` as an index into the trace's, and the `place`, one for each GPU of each process."""

    name: Ints
    start: Floats
    seconds: Floats
    correlation: Ints
    device: Ints
    place: Ints


@dataclass(frozen=True)
class Launches:
    """Calls of the runtime; `is_kernel` says which of them launch one kernel each."""

    correlation: Ints
    thread: Ints
    start: Floats
    is_kernel: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Flows:
    """Arrows from a forward op to its backward op, by `id`."""

    id: Ints
    is_source: npt.NDArray[np.bool_]
    thread: Ints
    start: Floats


@dataclass(frozen=True)
class ProfilerTrace:
    """`devices` are the kinds of GPU that ran kernels, None for one that isn't described; `processes` has the number of
    the process of every thread, for files that hold several. The list of events is `unended` where a file stops after
    one of them, as one that was cut off may."""

    source: str
    devices: tuple[Device | None, ...]
    names: tuple[str, ...]
    processes: Ints
    kernels: Kernels
    launches: Launches
    ops: Intervals
    sequence: Ints
    backward: npt.NDArray[np.bool_]
    scopes: Intervals
    marks: Intervals
    flows: Flows
    arguments: Mapping[int, Arguments]
    malformed: int
    unended: bool


def read_trace(path: Path) -> ProfilerTrace:
    """The trace in a .json or .json.gz file, old or new format; `PrecauditError` says what is wrong with any other."""
    if path.is_dir():
        raise PrecauditError(f"{path} is a folder: pass one trace file of it")
    if not path.exists():
        raise PrecauditError(f"{path} does not exist")
    file = TraceFile(path)
    columns = Columns()
    for batch in file:
        for event in batch:
            columns.add(event)
    seen, timed = columns.kernels_seen, int(np.count_nonzero(columns.kernels.columns()["seconds"]))
    if not timed or timed < _TIMED * seen:
        why = _untimed(path, seen, timed) if seen else _no_kernels(path, columns, file.events)
        raise PrecauditError(why, ExitCode.NOTHING_TO_MEASURE)
    return _assemble(str(path), columns, file)


def _untimed(path: Path, seen: int, timed: int) -> str:
    return (
        f"{path}: {seen - timed} of its {seen} GPU kernels have no time that can be read, so there is nothing to share "
        "out. Export the trace again with prof.export_chrome_trace(path)"
    )


def _no_kernels(path: Path, columns: Columns, events: int) -> str:
    if columns.counters:
        return (
            f"{path}: no GPU kernels with a duration: it holds {columns.counters} CUPTI counter ranges, "
            "which are not times. Record without profiler metrics"
        )
    if events and not columns.known:
        return (
            f"{path}: none of its {events} events has a category of torch.profiler's: another tool wrote it, or "
            "torch.autograd.profiler, which names no kernels. Record with torch.profiler and export with "
            "prof.export_chrome_trace(path)"
        )
    where = f"{len(columns.ops)} CPU ops" if len(columns.ops) else "no CPU op either"
    return (
        f"{path}: no GPU kernels among its {events} events ({where}). Record on a GPU with "
        "torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)"
    )


def _assemble(source: str, columns: Columns, file: TraceFile) -> ProfilerTrace:
    kernels, ops = columns.kernels.columns(), columns.ops.columns()
    devices, kernels["device"] = _devices(kernels["device"], kernels["seconds"], file.metadata, columns.calls)
    return ProfilerTrace(
        source=source,
        devices=devices,
        names=tuple(columns.names),
        processes=_processes(columns.threads),
        kernels=Kernels(**kernels),
        launches=Launches(**columns.launches.columns()),
        sequence=ops.pop("sequence"),
        backward=ops.pop("backward"),
        ops=Intervals(**ops),
        scopes=Intervals(**columns.scopes.columns()),
        marks=Intervals(**columns.marks.columns()),
        flows=Flows(**columns.flows.columns()),
        arguments=columns.arguments,
        malformed=columns.malformed,
        unended=file.unended,
    )


def _processes(threads: Iterable[str]) -> Ints:
    known: dict[str, int] = {}
    return np.array([known.setdefault(thread.partition(BETWEEN)[0], len(known)) for thread in threads], dtype=np.int64)


_OTHER_VENDOR = re.compile(r"AMD|Intel|Ascend|MLU|MTT|MetaX|Biren|Hygon|Iluvatar|.*(?:Radeon|Instinct)")
_AMD_KEYS = ("hip", "roctracer", "rocprofiler")


def _devices(
    numbers: Ints, seconds: Floats, metadata: Mapping[str, Any], calls: Collection[tuple[str, str]]
) -> tuple[tuple[Device | None, ...], Ints]:
    """The kinds of GPU among those that ran kernels, the busiest first, and which of them each kernel ran on."""
    foreign = _foreign_vendor(metadata, calls)
    listed = metadata.get("deviceProperties") or metadata.get("computeProperties")
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    distinct, member = np.unique(numbers, return_inverse=True)
    kinds = [_device(entries, number, foreign) for number in distinct.tolist()]
    spent = {kind: 0.0 for kind in kinds}
    for kind, total in zip(kinds, np.bincount(member, weights=seconds).tolist(), strict=True):
        spent[kind] += total
    ranked = sorted(spent, key=lambda kind: -spent[kind])
    return tuple(ranked), np.array([ranked.index(kind) for kind in kinds], dtype=np.int64)[member]


def _foreign_vendor(metadata: Mapping[str, Any], calls: Collection[tuple[str, str]]) -> str | None:
    """The GPU's vendor if it isn't NVIDIA, by the name of the runtime: AMD's has CUDA's event categories, others have
    their own."""
    if any(str(key).startswith(_AMD_KEYS) for key in metadata) or any(str(name).startswith("hip") for _, name in calls):
        return "AMD"
    backends = {re.sub(r"_(?:runtime|driver)$", "", category) for category, _ in calls}
    return None if backends & {"cuda", "Runtime"} else next((name.upper() for name in sorted(backends)), None)


def _device(entries: Sequence[Mapping[str, Any]], number: int, foreign: str | None) -> Device | None:
    """The GPU of that number as the trace's `deviceProperties` describe it; PyTorch 1.9 named all of it otherwise."""
    if not entries:
        return Device(f"unnamed {foreign} GPU", None, nvidia=False) if foreign else None
    entry = next((e for e in entries if integer(e.get("id"), -1) == number), entries[0])
    name = str(entry.get("name") or "unnamed GPU")
    major, minor = (integer(entry.get(f"compute{key}", entry.get(key.lower())), -1) for key in ("Major", "Minor"))
    capability = (major, minor) if major > 0 and minor >= 0 else None
    return Device(name, capability, nvidia=not foreign and not _OTHER_VENDOR.match(name))
