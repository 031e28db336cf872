"""Which optimizers make one step of a training together."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary


class Together:
    """Optimizers that have some of the parameters each (one for matrices and one for the rest, one a parameter) update
    them one after another, by gradients of the same backward passes: that is one step. It is over when all have come
    that came each time before, at first all that are known; those that come now and then belong to it all the same."""

    def __init__(self) -> None:
        self._known: MutableMapping[Any, bool] = WeakIdKeyDictionary()
        self._first: Any = None
        self._came: set[int] = set()
        self._usual: MutableMapping[Any, set[int]] = WeakIdKeyDictionary()
        self._open = False

    def know(self, optimizer: Any) -> None:
        self._known[optimizer] = True

    def has(self, optimizer: Any) -> bool:
        """Whether it has stepped by these gradients already."""
        return id(optimizer) in self._came

    def add(self, optimizer: Any) -> None:
        if not self._came:
            self._first, self._open = optimizer, True
        self._came.add(id(optimizer))

    @property
    def are_all(self) -> bool:
        """Whether a step is on, and nobody else is expected."""
        return self._open and (self._usual.get(self._first) or set(map(id, self._known))) <= self._came

    def complete(self) -> Any:
        """The first optimizer of the step that is on, which is over now; None if none is."""
        was_open, self._open = self._open, False
        return self._first if was_open else None

    def renew(self) -> None:
        """Other gradients are there, for other steps."""
        if self._first is not None:
            self._usual[self._first] = self._usual.get(self._first, self._came) & self._came
        self._first, self._came = None, set()
