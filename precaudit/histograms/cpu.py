"""Sums of CPU tensors by the compiled pass, large ones on the threads that torch's own loops run on."""

from __future__ import annotations

import ctypes
import os
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precaudit.histograms.kernels import (
    BRAIN,
    CHUNK,
    DIFFERENCE,
    DOUBLE,
    FOUND,
    HALF,
    SINGLE,
    accumulate,
    share,
)
from precaudit.histograms.layout import FLOAT32, FLOAT64, SUM_SQUARES

_SOURCES = {torch.float32: SINGLE, torch.bfloat16: BRAIN, torch.float16: HALF, torch.float64: DOUBLE}


class _Team:
    """The threads of GNU OpenMP in the library that torch has loaded, if that is the one it came with.

    Those of torch's last loop still spin there, waiting for the next: they start at once, and threads beside them
    would have no core to run on. A child forked after its parent had a team waits for its members for ever, so
    such a child counts alone.
    """

    def __init__(self) -> None:
        self._used = self._alone = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._alone = self._used

    @cached_property
    def _start(self) -> Any:
        try:
            start = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            return None
        start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return start

    def run(self, task: int, threads: int) -> None:
        """Let members of the team share the task at this address."""
        if threads == 1 or self._alone or self._start is None:
            share.ctypes(task)
        else:
            self._used = True
            self._start(share.address, task, threads, 0)


_TEAM = _Team()


class CpuSums:
    """Sums of tensors of one dtype. Each thread has a row of its own, so that none waits for another."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self._source = _SOURCES[dtype]
        self._itemsize = dtype.itemsize
        self.numel = 0
        self.rows = [self.layout.empty()]
        self._addresses = [self.rows[0].ctypes.data]
        self._squares = self._addresses[0] + 8 * SUM_SQUARES

    def add(self, values: Tensor) -> int:
        """Count a contiguous tensor; how many of its values are non-finite."""
        return self._count(self._source, values.data_ptr(), 0, values.numel())

    def add_difference(self, new: Tensor, old: Tensor) -> int:
        """Count `new - old` of two contiguous float32 tensors."""
        return self._count(DIFFERENCE, new.data_ptr(), old.data_ptr(), new.numel())

    def _count(self, source: int, address: int, other: int, numel: int) -> int:
        self.numel += numel
        if numel > CHUNK:
            threads = min(torch.get_num_threads(), -(-numel // CHUNK))
            return self._share(source, address, other, numel, threads)
        return accumulate(source, address, other, numel, self._addresses[0], self._squares)

    def _share(self, source: int, address: int, other: int, numel: int, threads: int) -> int:
        """Chunk by chunk, each with a sum of squares of its own: the total depends on neither threads nor timing."""
        while len(self.rows) < threads:
            self.rows.append(self.layout.empty())
            self._addresses.append(self.rows[-1].ctypes.data)
        squares = np.zeros(-(-numel // CHUNK))
        head = [source, address, other, numel, self._itemsize, squares.ctypes.data, 0, 0, 0]
        task = np.array([*head, *self._addresses[:threads]], np.int64)
        _TEAM.run(task.ctypes.data, threads)
        self.rows[0].view(np.float64)[SUM_SQUARES] += squares.sum()
        return int(task[FOUND])
