"""Temporary replacement of torch's functions by several users, who may end in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

Wrap = Callable[[Any], Any]


@dataclass
class _Wrapped:
    """A replaced function: `stored` is the original attribute of its owner (possibly a staticmethod)."""

    stored: Any
    function: Any
    wraps: list[Wrap] = field(default_factory=list)


_wrapped: dict[tuple[int, str], _Wrapped] = {}


@contextmanager
def wrapped(owner: Any, name: str, wrap: Wrap) -> Iterator[None]:
    """Replace `owner.name` by `wrap(original)` in this block; the first wrap to be entered is the innermost."""
    key = id(owner), name
    state = _wrapped.setdefault(key, _Wrapped(vars(owner)[name], getattr(owner, name)))
    state.wraps.append(wrap)
    _renew(owner, name, state)
    try:
        yield
    finally:
        state.wraps.remove(wrap)
        _renew(owner, name, state)
        if not state.wraps:
            del _wrapped[key]


def replaced_by(function: Any) -> Wrap:
    """A wrap that ignores the original."""
    return lambda original: function


@contextmanager
def all_wrapped(*functions: tuple[Any, str, Wrap]) -> Iterator[None]:
    """`wrapped` for several functions: (owner, name, wrap)."""
    with ExitStack() as stack:
        for owner, name, wrap in functions:
            stack.enter_context(wrapped(owner, name, wrap))
        yield


def _renew(owner: Any, name: str, state: _Wrapped) -> None:
    function = state.function
    for wrap in state.wraps:
        function = wrap(function)
    setattr(owner, name, function if state.wraps else state.stored)


class Shared:
    """A shared context manager: entered with its first user, left with its last."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._context: AbstractContextManager[Any] | None = None
        self._users = 0

    def __enter__(self) -> None:
        if self._users == 0:
            self._context = self._make()
            self._context.__enter__()
        self._users += 1

    def __exit__(self, *exception: Any) -> None:
        self._users -= 1
        if self._users == 0 and self._context is not None:
            self._context.__exit__(*exception)
            self._context = None
