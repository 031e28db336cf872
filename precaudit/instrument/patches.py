"""Temporary replacement of torch's functions, by several users who may end in any order, and of attributes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

Make = Callable[[Any], Any]
"""original -> what takes its place"""
Around = Callable[..., Any]
"""(original, *arguments of a call) -> the call's result"""


@dataclass
class _Replaced:
    """A replaced function: `stored` is the original attribute of its owner (possibly a staticmethod)."""

    stored: Any
    function: Any
    makers: list[Make] = field(default_factory=list)


_replaced: dict[tuple[int, str], _Replaced] = {}


@contextmanager
def replaced(owner: Any, name: str, make: Make) -> Iterator[None]:
    """Replace `owner.name` by `make(original)` in this block; the first replacement is the innermost."""
    key = id(owner), name
    state = _replaced.setdefault(key, _Replaced(vars(owner)[name], getattr(owner, name)))
    state.makers.append(make)
    _renew(owner, name, state)
    try:
        yield
    finally:
        state.makers.remove(make)
        _renew(owner, name, state)
        if not state.makers:
            del _replaced[key]


def wrapped(owner: Any, name: str, around: Around) -> AbstractContextManager[None]:
    """In this block a call of `owner.name` becomes one of `around`, which gets the original before the arguments."""
    return replaced(owner, name, partial(_calling, around))


@contextmanager
def all_wrapped(*functions: tuple[Any, str, Around]) -> Iterator[None]:
    """`wrapped` for several functions: (owner, name, around)."""
    with ExitStack() as stack:
        for function in functions:
            stack.enter_context(wrapped(*function))
        yield


def ignoring_original(function: Callable[..., Any]) -> Around:
    return lambda original, *args, **kwargs: function(*args, **kwargs)


def _calling(around: Around, original: Any) -> Any:
    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return around(original, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
        return original(*args, **kwargs)  # its arguments are wrong: torch says how

    return function


def _renew(owner: Any, name: str, state: _Replaced) -> None:
    function = state.function
    for make in state.makers:
        function = make(function)
    setattr(owner, name, function if state.makers else state.stored)


@contextmanager
def set_to(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute has this value in this block, and its former one afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def item_set_to(data: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """The item has this value in this block, and its former one afterwards, or None."""
    before = data.get(key)
    data[key] = value
    try:
        yield
    finally:
        data[key] = before


class Shared:
    """A context manager that threads share: entered with its first user, left with its last."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._context: AbstractContextManager[Any] | None = None
        self._users = 0
        self._lock = threading.RLock()  # whoever enters may collect garbage, whose finalizers leave

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._context = self._make()
                self._context.__enter__()
            self._users += 1

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._context is not None:
                self._context.__exit__(*exception)
                self._context = None
