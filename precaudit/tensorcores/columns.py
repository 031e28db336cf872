"""Events of a trace as columns, one array for each field, so that none is kept as a dictionary."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from precaudit.tensorcores.products import Arguments, read_arguments, reader_of, recorded_columns

Event = Mapping[str, Any]

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

    def __init__(self, *names: str) -> None:
        self.names = names
        self._cells = array("d")
        self.add = self._cells.extend  # takes a row: the hot call of the reader

    def __len__(self) -> int:
        return len(self._cells) // len(self.names)

    def floats(self, name: str) -> npt.NDArray[np.float64]:
        return np.array(self._cells[self.names.index(name) :: len(self.names)], dtype=np.float64)

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        return self.floats(name).astype(np.int64)


class Columns:
    """The tables of a trace; `add` takes any JSON value and counts those that are no usable event as malformed."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.threads: dict[str, int] = {}
        self.places: dict[tuple[Any, int], int] = {}
        self.kernels = Table("name", "start", "duration", "correlation", "device", "place")
        self.launches = Table("correlation", "thread", "start", "kernel")
        self.ops = Table("name", "thread", "start", "duration", "sequence", "forward_thread")
        self.scopes = Table("name", "thread", "start", "duration")
        self.marks = Table("name", "thread", "start", "duration")
        self.flows = Table("id", "source", "thread", "start")
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
        return self._name(name), self._thread(event), float(event["ts"]), float(event["dur"])

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
        sequence = forward_thread = -1
        if "Sequence number" in arguments:
            sequence = integer(arguments["Sequence number"], -1)
            forward_thread = integer(arguments.get("Fwd thread id"), 0)
        if reader_of(name):
            self.arguments[len(self.ops)] = self._arguments(arguments)
        self.ops.add((*span, sequence, forward_thread))

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
        self.kernels.add((self._name(name), float(event["ts"]), duration, correlation, device, place))

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
