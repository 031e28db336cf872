"""Events of a trace as columns, one array for each field, so that none is kept as a dictionary."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from precaudit.tensorcores.traces.products import Arguments, read_arguments, reader_of, recorded_columns

Event = Mapping[str, Any]
INT, FLOAT, BOOL = np.int64, np.float64, np.bool_

MODULE = "nn.Module: "
SCOPE = "fwd::"  # what precaudit's own profiled steps put around every forward
LAUNCHES = ("_runtime", "_driver")  # of cuda, hip, xpu, mtia, mlu, privateuse1 and whoever comes next
KERNEL = "LaunchKernel"  # in the names of CUDA's and HIP's calls that launch one: cuLaunchKernelEx, hipExtLaunchKernel
BETWEEN = "\0"
"""Stands between the ids of a process and its thread, either of which may hold spaces."""
_LARGEST = 2**53
_YEAR = 3.2e13  # in microseconds: no kernel takes as long


class Table:
    """Rows of numbers in one flat array of doubles, which hold every integer of a trace exactly (up to 2**53)."""

    def __init__(self, **dtypes: npt.DTypeLike) -> None:
        self._dtypes = dtypes
        self._cells = array("d")
        self.add = self._cells.extend  # takes a row: the hot call of the reader

    def __len__(self) -> int:
        return len(self._cells) // len(self._dtypes)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        count = len(self._dtypes)
        return {
            name: np.array(self._cells[place::count]).astype(dtype)
            for place, (name, dtype) in enumerate(self._dtypes.items())
        }


class Columns:
    """The tables of a trace; `add` takes any JSON value and counts those that are no usable event as malformed."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.threads: dict[str, int] = {}
        self.places: dict[tuple[Any, int], int] = {}
        self.kernels = Table(name=INT, start=FLOAT, seconds=FLOAT, correlation=INT, device=INT, place=INT)
        self.launches = Table(correlation=INT, thread=INT, start=FLOAT, is_kernel=BOOL)
        self.ops = Table(name=INT, thread=INT, start=FLOAT, end=FLOAT, sequence=INT, backward=BOOL)
        self.scopes = Table(name=INT, thread=INT, start=FLOAT, end=FLOAT)
        self.marks = Table(name=INT, thread=INT, start=FLOAT, end=FLOAT)
        self.flows = Table(id=INT, is_source=BOOL, thread=INT, start=FLOAT)
        self.calls: set[tuple[str, str]] = set()  # category and name of what launches: it tells the vendor
        self.arguments: dict[int, Arguments] = {}
        self._seen: dict[str, Arguments] = {}
        self.counters = 0
        self.kernels_seen = 0
        self.known = 0
        self.malformed = 0
        self._takers: dict[str, Callable[[Event], None]] = {
            "python_function": self._take_python,
            "cpu_op": self._take_op,
            "Operator": self._take_op,
            "kernel": self._take_kernel,
            "Kernel": self._take_kernel,
            "Runtime": self._take_launch,
            "user_annotation": self._take_annotation,
            "fwdbwd": self._take_flow,
            "cuda_profiler_range": self._take_counter,
        }

    def add(self, event: Any) -> None:
        try:
            category = event["cat"]
            taker = self._takers.get(category) or (self._take_launch if category.endswith(LAUNCHES) else None)
            if taker is not None:
                self.known += 1
                taker(event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.malformed += isinstance(event, dict) and "cat" in event

    def _name(self, name: Any) -> int:
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
        return self.names.setdefault(name, len(self.names))

    def _thread(self, event: Event) -> int:
        """A number for the thread; traces write its id as a number or as text, even within one file."""
        return self.threads.setdefault(f"{event['pid']}{BETWEEN}{event['tid']}", len(self.threads))

    def _span(self, event: Event, name: str) -> tuple[int, int, float, float]:
        start = float(event["ts"])
        return self._name(name), self._thread(event), start, start + max(float(event["dur"]), 0.0)

    def _take_python(self, event: Event) -> None:
        name = event["name"]
        if name.startswith(MODULE):
            self.scopes.add(self._span(event, name[len(MODULE) :]))

    def _take_annotation(self, event: Event) -> None:
        name = event["name"]
        if name.startswith(SCOPE):
            self.scopes.add(self._span(event, name[len(SCOPE) :]))
        else:
            self.marks.add(self._span(event, name))

    def _take_op(self, event: Event) -> None:
        name, span, arguments = event["name"], self._span(event, event["name"]), event.get("args") or {}
        sequence, is_backward = -1, False
        if "Sequence number" in arguments:
            sequence = integer(arguments["Sequence number"], -1)
            is_backward = integer(arguments.get("Fwd thread id"), 0) > 0
        if reader_of(name):
            self.arguments[len(self.ops)] = self._arguments(arguments)
        self.ops.add((*span, sequence, is_backward))

    def _arguments(self, recorded: Event) -> Arguments:
        """Parse recorded arguments; calls repeat, so that each distinct set is parsed and kept once."""
        text = str(recorded_columns(recorded))
        return self._seen.get(text) or self._seen.setdefault(text, read_arguments(recorded))

    def _take_kernel(self, event: Event) -> None:
        name, arguments = event["name"], event.get("args") or {}
        self.kernels_seen += 1
        device = integer(arguments.get("device", event.get("pid")), 0)
        correlation = integer(_link(arguments), -1)
        duration = float(event["dur"])
        if not 0 <= duration < _YEAR:
            raise ValueError("no time that a kernel takes")
        device = device if 0 <= device < 1024 else 0
        place = self.places.setdefault((event.get("pid"), device), len(self.places))
        self.kernels.add((self._name(name), float(event["ts"]), duration * 1e-6, correlation, device, place))

    def _take_launch(self, event: Event) -> None:
        name, link = event["name"], _link(event["args"])
        if link is None:
            raise ValueError("a call that nothing is linked with")
        correlation = integer(link, -1)
        self.launches.add((correlation, self._thread(event), float(event["ts"]), KERNEL in name))
        self.calls.add((event["cat"], name))

    def _take_flow(self, event: Event) -> None:
        self.flows.add((integer(event["id"], -1), event["ph"] == "s", self._thread(event), float(event["ts"])))

    def _take_counter(self, event: Event) -> None:
        self.counters += 1


def _link(arguments: Event) -> Any:
    """What a kernel and its launch have in common: the correlation, or in traces written without it the id of both."""
    return arguments.get("correlation", arguments.get("External id", arguments.get("external id")))


def integer(value: Any, default: int) -> int:
    """The value as a whole number that a double holds, or the default."""
    if value is None:
        return default
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if -_LARGEST <= number <= _LARGEST else default
