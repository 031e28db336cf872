"""torch.compile and TorchScript switched off, so that the operations of what they compile can be seen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped, replaced_by


def _uncompiled(model: Any = None, **options: Any) -> Any:
    """torch.compile's signature, as a function or a decorator with options."""
    return model if model is not None else (lambda function: function)


@contextmanager
def _scripting(enabled: bool) -> Iterator[None]:
    """TorchScript compiles in this block, or returns what it is given."""
    jit = torch.jit._state._enabled
    before, jit.enabled = jit.enabled, enabled
    try:
        yield
    finally:
        jit.enabled = before


def _scripted_for_torch(compiles: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    """torch depends on functions that it scripts itself, such as its rules for forward-mode derivatives."""

    @functools.wraps(original)
    def script(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] != "torch":
            if args and isinstance(args[0], torch.nn.Module):
                compiles()
            return original(*args, **kwargs)
        with _scripting(enabled=True):
            return original(*args, **kwargs)

    return script


@contextmanager
def eager_only(compiles: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Functions run as they are written; `compiles` is called where the script has TorchScript compile a module."""
    scripted = functools.partial(_scripted_for_torch, compiles)
    with (
        _scripting(enabled=False),
        all_wrapped(
            (torch, "compile", replaced_by(_uncompiled)),
            (torch.jit, "script", scripted),
            (torch.jit, "trace", scripted),
        ),
    ):
        yield
