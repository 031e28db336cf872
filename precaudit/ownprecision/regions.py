"""Emulates a script's own autocast regions with the rounding of CUDA's autocast.

A machine without CUDA disables regions for "cuda", and those for "cpu" round at other points. Every region is taken to
be for the device that the script trains on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.amp.autocast_mode import autocast
from torch.overrides import _get_current_function_mode_stack

from precaudit.execution.emulated import EmulatedMode, autocast_asked
from precaudit.execution.formats import FLOAT32, ScopeFormat
from precaudit.execution.kernels import in_own_dtype, is_low
from precaudit.execution.rounding import HALVES
from precaudit.instrument.patches import all_wrapped, ignoring_original
from precaudit.instrument.torch_function import Call, dtype_name
from precaudit.ownprecision.baseline import keeping_what_is_asked


class _Region(NamedTuple):
    """An open region. `dtype` is None if disabled; `brings` says that the mode was enabled for it, in a thread or
    backward pass without the mode."""

    dtype: torch.dtype | None
    brings: bool


class _Open(threading.local):
    """The open regions of a thread, and the weights that the outermost one has cast."""

    def __init__(self) -> None:
        self.regions: list[_Region] = []
        self.casts: dict[Any, Any] = {}


class OwnRegions(EmulatedMode):
    """The mode must be below all observing modes, so that these receive an operation's result as the script does."""

    def __init__(self) -> None:
        super().__init__(self._scope, lambda: self._open.casts)
        self._open = _Open()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dtype() is None and not is_low(args, kwargs):
            return func(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def operation(self, call: Call) -> Any:
        return in_own_dtype(call) if self._dtype() is None else super().operation(call)

    def _dtype(self) -> torch.dtype | None:
        return self._open.regions[-1].dtype if self._open.regions else None

    def _scope(self) -> ScopeFormat:
        dtype = self._dtype()
        return ScopeFormat(dtype_name(dtype)) if dtype else FLOAT32

    @contextmanager
    def emulated(self) -> Iterator[None]:
        """In this block the mode handles all regions, and torch's queries about autocast get the emulated state."""
        with (
            all_wrapped(
                (autocast, "__init__", keeping_what_is_asked),
                (autocast, "__enter__", ignoring_original(self._enter)),
                (autocast, "__exit__", ignoring_original(self._leave)),
                (torch, "clear_autocast_cache", ignoring_original(self._clear)),
            ),
            autocast_asked.by(lambda: self._dtype() is not None, self._dtype),
            self,
        ):
            yield

    def _enter(self, region: autocast) -> autocast:
        asked = getattr(region, "precaudit_asked", region._enabled) and region.fast_dtype in HALVES
        brings = all(mode is not self for mode in _get_current_function_mode_stack())
        self._open.regions.append(_Region(region.fast_dtype if asked else None, brings))
        if brings:
            self.__enter__()
        return region

    def _leave(self, region: autocast, *exception: Any) -> None:
        if self._open.regions.pop().brings:
            self.__exit__(None, None, None)
        if not self._open.regions:
            self._clear()

    def _clear(self) -> None:
        self._open.casts.clear()
