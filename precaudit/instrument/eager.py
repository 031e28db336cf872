"""Disables torch.compile and TorchScript, whose compiled operations can't be observed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped, ignoring_original, set_to

_FRAMES = 2
"""From a replaced function's frame to its caller's, in which TorchScript looks up what a class uses."""


def _uncompiled(model: Any = None, **options: Any) -> Any:
    """Replaces torch.compile, as a function or as a decorator with options."""
    return model if model is not None else (lambda function: function)


def _scripting(enabled: bool) -> AbstractContextManager[None]:
    """TorchScript compiles in this block (`enabled`), or returns what it is given."""
    return set_to(torch.jit._state._enabled, "enabled", enabled)


def _scripted_for_torch(
    compiles: Callable[[], None], more: Mapping[str, Any], original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Scripting only for torch's own calls, which it depends on, such as its rules for forward-mode derivatives."""
    caller = sys._getframe(_FRAMES)
    if caller.f_globals.get("__name__", "").partition(".")[0] != "torch":
        if args and isinstance(args[0], torch.nn.Module):
            compiles()
        return original(*args, **kwargs)
    with _scripting(enabled=True):
        return original(*args, **more, **kwargs)


@contextmanager
def eager_only(compiles: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run functions uncompiled; `compiles` is called where the script has TorchScript compile a module."""
    scripted = partial(_scripted_for_torch, compiles, {"_frames_up": _FRAMES})
    traced = partial(_scripted_for_torch, compiles, {})
    with (
        _scripting(enabled=False),
        all_wrapped(
            (torch, "compile", ignoring_original(_uncompiled)),
            (torch.jit, "script", scripted),
            (torch.jit, "trace", traced),
        ),
    ):
        yield
