"""Sums of CPU tensors by the compiled pass, which large tensors share among as many threads as torch uses."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precaudit.histograms.kernels import BRAIN, DIFFERENCE, HALF, SINGLE, accumulate_double, accumulate_single
from precaudit.histograms.layout import FLOAT32, FLOAT64, SUM_SQUARES

# What a thread takes at a time; tensors up to this size are not worth waking another one.
CHUNK = 1 << 17
_SOURCES = {torch.float32: SINGLE, torch.bfloat16: BRAIN, torch.float16: HALF}

Count = Callable[[int, int, int, int], int]  # (first value, number of values, row, sum of squares) -> non-finite


class _Helpers:
    """Threads beside the calling one, started when first needed; a forked child starts its own.

    numba's own threads clash with torch's OpenMP and with forks.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._executor = None

    def get(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="precaudit")
        return self._executor


_HELPERS = _Helpers()


class CpuSums:
    """Sums of tensors of one dtype. Each thread has a row of its own, so that none waits for another."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self._source = _SOURCES.get(dtype)
        self._itemsize = dtype.itemsize
        self.numel = 0
        self.rows = [self.layout.empty()]
        self._addresses = [self.rows[0].ctypes.data]
        self._squares = self._addresses[0] + 8 * SUM_SQUARES

    def add(self, values: Tensor) -> int:
        """Count a contiguous tensor; how many of its values are non-finite."""
        numel = values.numel()
        self.numel += numel
        if numel <= CHUNK and self._source is not None:
            return accumulate_single(self._source, values.data_ptr(), 0, numel, self._addresses[0], self._squares)
        return self._share(partial(self._count, values), numel)

    def add_difference(self, new: Tensor, old: Tensor) -> int:
        """Count `new - old` of two contiguous float32 tensors."""
        numel = new.numel()
        self.numel += numel
        return self._share(partial(self._count_difference, new, old), numel)

    def _count(self, values: Tensor, start: int, size: int, row: int, squares: int) -> int:
        address = values.data_ptr() + self._itemsize * start
        if self._source is None:
            return accumulate_double(address, size, row, squares)
        return accumulate_single(self._source, address, 0, size, row, squares)

    def _count_difference(self, new: Tensor, old: Tensor, start: int, size: int, row: int, squares: int) -> int:
        offset = 4 * start
        return accumulate_single(DIFFERENCE, new.data_ptr() + offset, old.data_ptr() + offset, size, row, squares)

    def _share(self, count: Count, numel: int) -> int:
        """Count all chunks, with whatever helpers wake up in time.

        Each chunk has its own sum of squares, so that the total depends on neither threads nor timing.
        """
        if numel <= CHUNK:
            return count(0, numel, self._addresses[0], self._squares)
        pending = deque(range(0, numel, CHUNK))
        squares = np.zeros(len(pending))
        threads = min(torch.get_num_threads(), 1 + isqrt(len(pending)))  # waking one costs half a chunk's time
        work = partial(_work, count, pending, numel, squares)
        helpers = [_HELPERS.get().submit(work, self._row(i)) for i in range(1, threads)]
        nonfinite = work(self._addresses[0])
        nonfinite += sum(helper.result() for helper in helpers if not helper.cancel())
        self.rows[0].view(np.float64)[SUM_SQUARES] += squares.sum()
        return nonfinite

    def _row(self, index: int) -> int:
        while index >= len(self.rows):
            self.rows.append(self.layout.empty())
            self._addresses.append(self.rows[-1].ctypes.data)
        return self._addresses[index]


def _work(
    count: Count, pending: deque[int], numel: int, squares: np.ndarray[Any, np.dtype[np.float64]], row: int
) -> int:
    """Take chunks until none is left; how many non-finite values they had."""
    nonfinite, address = 0, squares.ctypes.data
    while True:
        try:
            start = pending.popleft()
        except IndexError:
            return nonfinite
        nonfinite += count(start, min(CHUNK, numel - start), row, address + 8 * (start // CHUNK))
