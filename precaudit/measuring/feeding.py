"""The script's data: batch size, DataLoader length, and the time it waits for data between steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.instrument.torch_function import tensors_in
from precaudit.measuring.records import Feed


class Loaders:
    """The DataLoaders that provide the steps' data, and the batches per step."""

    def __init__(self) -> None:
        self._of_iterator: WeakKeyDictionary[Any, DataLoader[Any]] = WeakKeyDictionary()
        self._loaders: dict[int, DataLoader[Any]] = {}
        self._draws: Counter[int] = Counter()
        self._steps: Counter[int] = Counter()
        self._latest: int | None = None

    def installed(self) -> AbstractContextManager[None]:
        return all_wrapped((DataLoader, "__iter__", self._started), (_BaseDataLoaderIter, "__next__", self._drawn))

    def _started(self, original: Callable[..., Any], loader: DataLoader[Any]) -> Any:
        iterator = original(loader)
        self._of_iterator[iterator] = loader
        self._loaders[id(loader)] = loader
        return iterator

    def _drawn(self, original: Callable[..., Any], iterator: Any) -> Any:
        batch = original(iterator)
        loader = self._of_iterator.get(iterator)
        if loader is not None:
            self._latest = id(loader)
            self._draws[self._latest] += 1
        return batch

    def stepped(self) -> None:
        if self._latest is not None:
            self._steps[self._latest] += 1

    def most_used(self) -> tuple[DataLoader[Any], float] | None:
        """The loader of most steps, and the batches drawn from it per step."""
        if not self._steps:
            return None
        key, steps = self._steps.most_common(1)[0]
        return self._loaders[key], self._draws[key] / steps


class Feeding(ScopeListener):
    """Observes the untimed steps: when the first forward begins, and with how many samples."""

    def __init__(self) -> None:
        self.loaders = Loaders()
        self._batches: list[int] = []
        self._waits: list[float] = []
        self._since: float | None = None
        self._steps = self._backwards = 0

    def step_begins(self) -> None:
        self._since = time.perf_counter()

    def entered(self, frame: Frame) -> None:
        if self._since is not None:
            self._waits.append(time.perf_counter() - self._since)
            self._since = None

    def left(self, frame: Frame, output: Any) -> None:
        if frame.is_outermost:
            sizes = [tensor.shape[0] for tensor in tensors_in(frame.call) if tensor.dim()]
            self._batches += sizes[:1]

    def count(self, backwards: int) -> None:
        """Count a step after `backwards` backward passes."""
        self._steps += 1
        self._backwards += backwards
        self.loaders.stepped()

    def feed(self) -> Feed:
        batch = self._batches[0] if self._batches else None
        found, epoch, draws = self.loaders.most_used(), None, None
        if found is not None:
            loader, draws = found
            batch = loader.batch_size or batch
            length = _length(loader)
            epoch = length / draws if length and draws else None
        each = draws if draws else self._backwards / self._steps if self._steps else None
        samples = batch * each if batch and each else None
        return Feed(tuple(self._waits), samples, epoch)


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except Exception:  # a user's dataset or sampler may fail to tell its length in any way
        return None
