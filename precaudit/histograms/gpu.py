"""Sums of CUDA tensors by a Triton kernel: one read of the values, sums kept on the device, no synchronization.

Triton's own argument handling costs several times the kernel itself for most tensors of a training step. So every
variant is launched that way once, and by its compiled form from then on, and many parameters are added by one launch,
from a table of their addresses on the device.
"""

# Triton specialises the kernel by the types that it takes; annotations would be about Python objects.
# ruff: noqa: ANN001
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from precaudit.histograms.gpu_kernel import EACH, MAX_STRETCH, MAX_TILES, count_stretch
from precaudit.histograms.layout import FLOAT32, FLOAT64, SUM_SQUARES, Layout
from precaudit.histograms.plain import PlainSums

ALIGNMENT = 16
"""Bytes that a thread loads at a time."""
_ELEMENTS = {torch.float32: tl.float32, torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.int16}


@dataclass(frozen=True)
class Tuning:
    """How a tensor is divided: `warps` per program, `programs` at a time per processor (limited by registers), `window`
    (32 or 64) bits per word, and the largest binade of the first tile `headroom` below the window's top."""

    warps: int = 4
    window: int = 64
    headroom: int = 12
    programs: int = 4

    @property
    def tile(self) -> int:
        return 32 * self.warps * EACH.value

    def tiles(self, numel: int, processors: int) -> int:
        """Tiles in a program's stretch of a tensor: for as many programs as run at once, or a multiple of that."""
        share = triton.cdiv(numel, self.tile * self.programs * processors)
        rounds = triton.cdiv(share, min(MAX_TILES, MAX_STRETCH // self.tile))
        return triton.cdiv(share, rounds)


WIDE, NARROW = Tuning(), Tuning(window=32, headroom=4, programs=5)


def tuning_of(dtype: torch.dtype) -> Tuning:
    """The tuning for a dtype. A narrow window needs two thirds of the instructions; half types have twice as many
    values per byte, and mostly fit into it."""
    return NARROW if dtype.itemsize == 2 else WIDE


@triton.jit(do_not_specialize=["row", "numel", "tiles"])
def _accumulate(
    values,
    other,
    row,
    numel,
    tiles,
    SUBTRACT: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADROOM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Each program adds a stretch of `tiles` tiles."""
    first = tl.program_id(0).to(tl.int64) * tiles * TILE
    size = tl.minimum(numel - first, tiles * TILE).to(tl.int32)
    values += first
    other += first
    count_stretch(values, other, row, size, SUBTRACT, WINDOW, HEADROOM, TILE)


@triton.jit(do_not_specialize=["tiles"])
def _accumulate_many(
    table,
    owners,
    tiles,
    ELEMENT: tl.constexpr,
    SUBTRACT: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADROOM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """As `_accumulate`, each program for the tensor that owns it: addresses, row, numel and first program."""
    program = tl.program_id(0)
    entry = table + tl.load(owners + program) * 5
    first = (program - tl.load(entry + 4)) * tiles * TILE
    size = tl.minimum(tl.load(entry + 3) - first, tiles * TILE).to(tl.int32)
    values = tl.multiple_of(tl.load(entry).to(tl.pointer_type(ELEMENT)), 16) + first
    other = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(ELEMENT)), 16) + first
    row = tl.load(entry + 2).to(tl.pointer_type(tl.int64))
    count_stretch(values, other, row, size, SUBTRACT, WINDOW, HEADROOM, TILE)


@cache
def processors(device: torch.device) -> int:
    """The number of streaming multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _constants(subtract: bool, tuning: Tuning) -> dict[str, Any]:
    return {
        "SUBTRACT": subtract,
        "WINDOW": tuning.window,
        "HEADROOM": tuning.headroom,
        "TILE": tuning.tile,
    }


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Launcher:
    """One variant of a kernel: compiled by its first launch, then launched without Triton's argument handling."""

    def __init__(self, kernel: Any, constants: dict[str, Any], warps: int) -> None:
        self._kernel, self._constants, self._warps = kernel, constants, warps
        self._rest = tuple(constants.values())
        self._compiled: Any = None

    @property
    def compiled(self) -> bool:
        return self._compiled is not None

    def __call__(self, programs: int, device: torch.device, *arguments: Any) -> None:
        """Tensor arguments determine the types in the first launch, and may be addresses in later ones."""
        if self._compiled is None:
            with _current(device):
                self._compiled = self._kernel[(programs,)](*arguments, **self._constants, num_warps=self._warps)
        elif device.index == torch._C._cuda_getDevice():
            self._launch(programs, device.index, arguments)
        else:
            with _current(device):
                self._launch(programs, device.index, arguments)

    def _launch(self, programs: int, device: int, arguments: tuple[Any, ...]) -> None:
        stream = torch._C._cuda_getCurrentRawStream(device)
        self._compiled[(programs, 1, 1)](*arguments, *self._rest, stream=stream)


@cache
def _single(dtype: torch.dtype, device: torch.device, subtract: bool, long: bool, tuning: Tuning) -> _Launcher:
    """Triton specialises by whether the size is `long`: past 32 bits."""
    return _Launcher(_accumulate, _constants(subtract, tuning), tuning.warps)


@cache
def _many(dtype: torch.dtype, device: torch.device, subtract: bool, tuning: Tuning) -> _Launcher:
    constants = {"ELEMENT": _ELEMENTS[dtype], **_constants(subtract, tuning)}
    return _Launcher(_accumulate_many, constants, tuning.warps)


class _Rows:
    """Rows of sums on a device, allocated in blocks, so that a new slot needs no synchronization."""

    CHUNK = 256

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._free: list[Tensor] = []

    def take(self) -> Tensor:
        if not self._free:
            empty = torch.from_numpy(np.tile(self._layout.empty(), (self.CHUNK, 1)))
            self._free = list(empty.to(self._device).unbind())
        return self._free.pop()


@cache
def _rows(layout: Layout, device: torch.device) -> _Rows:
    return _Rows(layout, device)


class TritonSums:
    """Sums of tensors of one dtype on one device, where the sums stay."""

    def __init__(self, dtype: torch.dtype, device: torch.device, tuning: Tuning | None = None) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self.numel = 0
        self.rows = _rows(self.layout, device).take()
        self._address = self.rows.data_ptr()
        self._dtype, self._device, self._tuning = dtype, device, tuning or tuning_of(dtype)

    def add(self, values: Tensor) -> None:
        """Add a contiguous tensor."""
        self._count(values.resolve_neg() if values.is_neg() else values, None)

    def add_difference(self, new: Tensor, old: Tensor) -> None:
        """Add `new - old` of two contiguous float32 tensors."""
        self._count(new, old)

    def entry(self, values: Tensor, old: Tensor | None) -> tuple[int, int, int, int] | None:
        """The table entry of a contiguous tensor for `add_many`; None where it must be added by itself."""
        address = values.data_ptr()
        other = address if old is None else old.data_ptr()
        numel = values.numel()
        if not numel or (address | other) % ALIGNMENT or values.is_neg():
            return None
        self.numel += numel
        return address, other, self._address, numel

    def _count(self, values: Tensor, old: Tensor | None) -> None:
        numel = values.numel()
        self.numel += numel
        if not numel:
            return
        values = _aligned(values)
        old = None if old is None else _aligned(old)
        address = values.data_ptr()
        other = address if old is None else old.data_ptr()
        tiles = self._tuning.tiles(numel, processors(self._device))
        launch = _single(self._dtype, self._device, old is not None, numel > 0x7FFFFFFF, self._tuning)
        programs = triton.cdiv(numel, tiles * self._tuning.tile)
        if launch.compiled:
            launch(programs, self._device, address, other, self._address, numel, tiles)
        else:
            typed = _typed(values)
            launch(programs, self._device, typed, typed if old is None else _typed(old), self.rows, numel, tiles)


def _aligned(values: Tensor) -> Tensor:
    """The values, copied if unaligned: the kernel loads whole vectors."""
    return values if values.data_ptr() % ALIGNMENT == 0 else values.clone()


def _typed(values: Tensor) -> Tensor:
    """The tensor with the kernel's element type; bfloat16 is passed as bits."""
    values = values.detach()
    return values.view(torch.int16) if values.dtype is torch.bfloat16 else values


@lru_cache(maxsize=16)
def _table(
    entries: tuple[tuple[int, int, int, int], ...], tile: int, device: torch.device, stream: int
) -> tuple[Tensor, Tensor]:
    """The table of entries with their first programs, and each program's entry, on the device; the upload is
    asynchronous."""
    columns = np.array(entries, dtype=np.int64)
    programs = -(-columns[:, 3] // tile)
    first = np.cumsum(programs) - programs
    table = torch.from_numpy(np.column_stack([columns, first]))
    owners = torch.from_numpy(np.repeat(np.arange(len(entries), dtype=np.int32), programs))
    if device.type == "cuda":
        table, owners = table.pin_memory(), owners.pin_memory()
    return table.to(device, non_blocking=True), owners.to(device, non_blocking=True)


def add_many(
    dtype: torch.dtype,
    device: torch.device,
    entries: Sequence[tuple[int, int, int, int]],
    subtract: bool,
) -> None:
    """Add many tensors of one dtype by one launch; the table of their addresses is cached while they stay the same."""
    tuning = tuning_of(dtype)
    tiles = tuning.tiles(sum(entry[3] for entry in entries), processors(device))
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    table, owners = _table(tuple(entries), tiles * tuning.tile, device, stream)
    _many(dtype, device, subtract, tuning)(owners.numel(), device, table, owners, tiles)


def check(dtype: torch.dtype, device: torch.device) -> None:
    """Test every variant on a few values, by its first launch and its compiled form; raises where a result is wrong."""
    sums, expected = TritonSums(dtype, device), PlainSums(dtype, torch.device("cpu"))
    odd = torch.tensor([torch.finfo(dtype).smallest_normal / 4, torch.inf, torch.nan, 0.0], dtype=dtype)
    for part in (torch.linspace(-3.0, 3.0, 1000, dtype=dtype), odd) * 2:
        values = part.to(device)
        sums.add(values)
        expected.add(part)
        if (entry := sums.entry(values, None)) is not None:
            add_many(dtype, device, [entry], False)
            expected.add(part)
        if dtype is torch.float32:
            sums.add_difference(values, torch.ones_like(values))
            expected.add_difference(part, torch.ones_like(part))
    found = sums.rows.cpu()
    ours, theirs = (row.view(torch.float64)[SUM_SQUARES].item() for row in (found, expected.rows))
    found[SUM_SQUARES] = expected.rows[SUM_SQUARES]
    if not (torch.equal(found, expected.rows) and math.isclose(ours, theirs) and sums.numel == expected.numel):
        raise RuntimeError(f"the kernel counts {dtype} wrongly here")
