"""Sums of CPU tensors by the compiled pass; large tensors are shared among torch's own threads."""

from __future__ import annotations

import ctypes
import os
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from precaudit.histograms.kernels import (
    BRAIN,
    CHUNK,
    COPIED,
    DIFFERENCE,
    DOUBLE,
    HALF,
    SINGLE,
    accumulate,
    accumulate_large,
    share,
)
from precaudit.histograms.layout import FLOAT32, FLOAT64, SUM_SQUARES, Row

_SOURCES = {torch.float32: SINGLE, torch.bfloat16: BRAIN, torch.float16: HALF, torch.float64: DOUBLE}


class _Team:
    """The threads of GNU OpenMP in torch's bundled library.

    The threads of torch's last loop still spin there and start at once, while other threads would have no free core. A
    child that is forked after its parent had a team would wait for its members for ever, so it uses one thread.
    """

    def __init__(self) -> None:
        self._used = self._alone = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._alone = self._used

    @cached_property
    def _address(self) -> int:
        try:
            library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            return 0

    def start(self, threads: int) -> int:
        """The address of the function that starts a team; 0 to use one thread."""
        if threads == 1 or self._alone or not self._address:
            return 0
        self._used = True
        return self._address


_TEAM = _Team()


class CpuSums:
    """Sums of tensors of one dtype, one row for each thread, so that threads don't wait for each other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self._source = _SOURCES[dtype]
        self.numel = 0
        self.rows: list[Row] = []
        self._grow(1)
        self._first = int(self._table[0])
        self._squares = self._first + 8 * SUM_SQUARES

    def _grow(self, threads: int) -> None:
        self.rows += [self.layout.empty() for _ in range(threads - len(self.rows))]
        self._table = np.array([row.ctypes.data for row in self.rows], np.int64)
        self._addresses = self._table.ctypes.data

    def add(self, values: Tensor) -> int:
        """Add a contiguous tensor; returns how many of its values are non-finite."""
        return self._count(self._source, values.data_ptr(), 0, values.numel())

    def add_difference(self, new: Tensor, old: Tensor) -> int:
        """Add `new - old` of two contiguous float32 tensors."""
        return self._count(DIFFERENCE, new.data_ptr(), old.data_ptr(), new.numel())

    def add_copied(self, values: Tensor, copy: Tensor) -> int:
        """Add a contiguous float32 tensor and copy its values."""
        return self._count(COPIED, values.data_ptr(), copy.data_ptr(), values.numel())

    def _count(self, source: int, address: int, other: int, numel: int) -> int:
        self.numel += numel
        if numel <= CHUNK:
            return int(accumulate(source, address, other, numel, self._first, self._squares))
        threads = min(torch.get_num_threads(), -(-numel // CHUNK))
        if len(self.rows) < threads:
            self._grow(threads)
        start = _TEAM.start(threads)
        return int(accumulate_large(source, address, other, numel, self._addresses, start, share.address, threads))
