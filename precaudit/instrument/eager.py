"""torch.compile and TorchScript switched off, so that the operations of what they compile can be seen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


def _uncompiled(model: Any = None, **options: Any) -> Any:
    """torch.compile's signature, as a function or a decorator with options."""
    return model if model is not None else (lambda function: function)


def _scripted_for_torch(original: Callable[..., Any], compiles: Callable[[], None]) -> Callable[..., Any]:
    """What torch scripts for itself, such as its rules for forward-mode derivatives, it can't do without."""
    jit = torch.jit._state._enabled

    @functools.wraps(original)
    def script(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] != "torch":
            if args and isinstance(args[0], torch.nn.Module):
                compiles()
            return original(*args, **kwargs)
        with mock.patch.object(jit, "enabled", True):
            return original(*args, **kwargs)

    return script


@contextmanager
def eager_only(compiles: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Functions run as they are written; `compiles` is called where the script has TorchScript compile a module."""
    jit = torch.jit._state._enabled
    was_enabled = jit.enabled
    jit.enabled = False
    try:
        with (
            mock.patch.object(torch, "compile", _uncompiled),
            mock.patch.object(torch.jit, "script", _scripted_for_torch(torch.jit.script, compiles)),
            mock.patch.object(torch.jit, "trace", _scripted_for_torch(torch.jit.trace, compiles)),
        ):
            yield
    finally:
        jit.enabled = was_enabled
