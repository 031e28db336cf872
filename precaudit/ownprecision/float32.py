"""A script's own casts to low precision: recorded, or replaced by float32 wherever low values can originate (a call, a
default dtype, a file)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from precaudit.execution.rounding import LOW_DTYPES
from precaudit.instrument.patches import all_wrapped, wrapped
from precaudit.instrument.torch_function import dtype_name
from precaudit.model import Location
from precaudit.ownprecision.records import Cast, OwnPrecision
from precaudit.tracing.ops import caller_location, script_location

_MOST_PLACES = 20
_REINTERPRETING = {"view", "from_file"}
"""Functions that reinterpret the same bits as a requested dtype."""
_LOW_CASTS = {"half", "bfloat16"}


def called_by_precaudit(func: Any) -> bool:
    """Whether precaudit itself makes this call, to round something. Frames that only pass on `func` are skipped: those
    of precaudit's modes and of the script's (`with torch.device(...)`)."""
    frame: Any = sys._getframe(2)
    while frame is not None and _hands_on(frame):
        if _is_ours(frame) and _given(frame) != func:
            return True
        frame = frame.f_back
    return False


def _is_ours(frame: Any) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith("precaudit."))


def _given(frame: Any) -> Any:
    """The function that a frame of precaudit's was given, by itself or in a `Call`."""
    given = frame.f_locals
    return given["func"] if "func" in given else getattr(given.get("call", given.get("self")), "func", None)


def _hands_on(frame: Any) -> bool:
    return _is_ours(frame) or frame.f_code.co_name == "__torch_function__"


class CastWatch(TorchFunctionMode):
    """Records the lines at which a script casts to low precision; changes nothing. A tensor without elements, of which
    a library reads how many bytes a dtype takes, is none."""

    def __init__(self, own: OwnPrecision) -> None:
        super().__init__()
        self._own = own
        self._casts: dict[tuple[Location, str], Cast] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = _asked_for(func, args, kwargs) if len(self._casts) < _MOST_PLACES else None
        result = func(*args, **kwargs)
        if dtype is not None and not called_by_precaudit(func) and not _is_empty(result):
            self._note(dtype)
        return result

    def by_default(self, original: Callable[[torch.dtype], None], d: torch.dtype) -> None:
        """A low default dtype, whose setting no function mode sees."""
        if d in LOW_DTYPES:
            self._note(dtype_name(d))
        original(d)

    def _note(self, dtype: str) -> None:
        place, through = script_location(), caller_location()
        if place is not None:
            self._casts.setdefault((place, dtype), Cast(place, dtype, through if through != place else None))
            self._own.casts = tuple(self._casts.values())


def _is_empty(result: Any) -> bool:
    with torch._C.DisableTorchFunction():
        return isinstance(result, torch.Tensor) and not result.numel()


def _asked_for(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """The low-precision dtype that a call requests, by its name or an argument."""
    name = getattr(func, "__name__", "")
    if name in _LOW_CASTS:
        return "float16" if name == "half" else name
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.dtype) and value in LOW_DTYPES:
            return dtype_name(value)
    return None


class Float32Mode(TorchFunctionMode):
    """Replaces a script's own casts to low precision by float32: `.half()`, `.to(torch.bfloat16)`, `dtype=...`. Such a
    cast still copies, as does one back to float32, since the script may change the result in place.

    Tensors that are low nevertheless come from a plan. A function that reads the dtype of such a tensor, as in
    `y.to(x.dtype)`, gets that dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asking: set[tuple[torch.dtype, CodeType]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if called_by_precaudit(func):
            return func(*args, **(kwargs or {}))
        if getattr(func, "__self__", None) is torch.Tensor.dtype:
            return self._asked(func(*args))
        name, asked = getattr(func, "__name__", ""), kwargs or {}
        kwargs = {key: self._float32_dtype(value) for key, value in asked.items()}
        if name in _REINTERPRETING and torch.float32 in (*kwargs.values(), *map(self._float32_dtype, args)):
            return func(*args, **asked).float()
        if not args or not isinstance(args[0], torch.Tensor) or not _casts(name, args, kwargs):
            return func(*map(self._float32_dtype, args), **kwargs)
        source = args[0]
        result = source.float() if name in _LOW_CASTS else func(*map(self._float32_dtype, args), **kwargs)
        kept = source.is_leaf and source.requires_grad  # it may be passed to an optimizer
        return result.clone() if result is source and not kept else result

    def _asked(self, dtype: torch.dtype) -> torch.dtype:
        if dtype in LOW_DTYPES:
            frame: Any = sys._getframe(2)
            while _hands_on(frame):
                frame = frame.f_back
            self._asking.add((dtype, frame.f_code))
        return dtype

    def _float32_dtype(self, value: Any) -> Any:
        if not (isinstance(value, torch.dtype) and value in LOW_DTYPES) or self._is_followed(value):
            return value
        return torch.float32

    def _is_followed(self, dtype: torch.dtype) -> bool:
        """Whether a running function has read this dtype from a low tensor."""
        frame: Any = sys._getframe(2) if self._asking else None
        while frame is not None and (dtype, frame.f_code) not in self._asking:
            frame = frame.f_back
        return frame is not None


def _casts(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    asked = any(isinstance(value, (torch.dtype, torch.Tensor)) for value in (*args[1:], *kwargs.values()))
    return name in ("half", "bfloat16", "float") or (name in ("to", "type", "type_as") and asked)


@contextmanager
def in_both_passes(mode: TorchFunctionMode) -> Iterator[None]:
    """Enable a function mode in forward and backward passes. torch disables it during a call of `backward`, so it is
    enabled again around the engine, for hooks and custom functions of the script."""

    def running(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if mode in _get_current_function_mode_stack():
            return original(*args, **kwargs)
        with mode:
            return original(*args, **kwargs)

    with wrapped(torch.autograd, "_engine_run_backward", running), mode:
        yield


@contextmanager
def everywhere(mode: TorchFunctionMode) -> Iterator[None]:
    """Enable the mode in this thread and in those that it starts: a script may train in one, and a function mode is per
    thread."""

    def starting(original: Callable[[threading.Thread], None], thread: threading.Thread) -> None:
        with mode:
            original(thread)

    with wrapped(threading.Thread, "_bootstrap_inner", starting), in_both_passes(mode):
        yield


@contextmanager
def casts_recorded(own: OwnPrecision) -> Iterator[None]:
    """`CastWatch` in all threads, for a low default dtype too."""
    watch = CastWatch(own)
    with wrapped(torch, "set_default_dtype", watch.by_default), everywhere(watch):
        yield


def _read_in_float32(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Load the tensor in its stored dtype, then widen it."""
    with torch._C.DisableTorchFunction():
        tensor = original(*args, **kwargs)
        return tensor.float() if tensor.dtype in LOW_DTYPES else tensor


def _float32_by_default(original: Callable[[torch.dtype], None], d: torch.dtype) -> None:
    original(torch.float32 if d in LOW_DTYPES else d)


@contextmanager
def float32_only() -> Iterator[None]:
    """`Float32Mode`, and float32 for tensors that are loaded, shared between processes, or created by default."""
    with (
        all_wrapped(
            (torch, "set_default_dtype", _float32_by_default),
            (torch._utils, "_rebuild_tensor", _read_in_float32),
            (torch, "frombuffer", _read_in_float32),
        ),
        everywhere(Float32Mode()),
    ):
        yield
