"""Which optimizers belong to one training step."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary


class StepGroup:
    """Groups the steps of several optimizers that share one step's gradients, each with some of the parameters.

    Such a step is over when all optimizers have stepped that did so in every earlier step (at first: all that are
    known). Occasional optimizers belong to the step too, but are not waited for.
    """

    def __init__(self) -> None:
        self._known: MutableMapping[Any, bool] = WeakIdKeyDictionary()
        self._first: Any = None
        self._came: set[int] = set()
        self._usual: MutableMapping[Any, set[int]] = WeakIdKeyDictionary()
        self._open = False

    def know(self, optimizer: Any) -> None:
        self._known[optimizer] = True

    def has(self, optimizer: Any) -> bool:
        """Whether the optimizer has already stepped with the current gradients."""
        return id(optimizer) in self._came

    def add(self, optimizer: Any) -> None:
        if not self._came:
            self._first, self._open = optimizer, True
        self._came.add(id(optimizer))

    @property
    def are_all(self) -> bool:
        """Whether a step is in progress and no further optimizer is expected."""
        return self._open and (self._usual.get(self._first) or set(map(id, self._known))) <= self._came

    def complete(self) -> Any:
        """End the step; returns its first optimizer, or None where no step is in progress."""
        was_open, self._open = self._open, False
        return self._first if was_open else None

    def renew(self) -> None:
        """New gradients begin a new step."""
        if self._first is not None:
            self._usual[self._first] = self._usual.get(self._first, self._came) & self._came
        self._first, self._came = None, set()
