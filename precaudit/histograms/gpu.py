"""Sums of CUDA tensors by a Triton kernel: one read of the values, sums kept on the device, no waiting for it."""

# Triton specialises the kernel by the types that it takes; annotations would be about Python objects.
# ruff: noqa: ANN001
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from precaudit.histograms.gpukernel import EACH, MAX_STRETCH, MAX_TILES, READ, SUBTRACT, count_stretch
from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, SMALLEST, SUM_SQUARES


@dataclass(frozen=True)
class Tuning:
    """How a tensor is shared out: `warps` to a program and at least `programs` a processor as long as there are
    tiles; `window` (32 or 64) bits to a word, the first tile's largest binade `headroom` below its top."""

    warps: int = 4
    window: int = 64
    headroom: int = 12
    programs: int = 8

    @property
    def tile(self) -> int:
        return 32 * self.warps * EACH.value

    def tiles(self, numel: int, processors: int) -> int:
        """Tiles in a program's stretch of a tensor."""
        share = triton.cdiv(numel, self.tile * self.programs * processors)
        return min(share, MAX_TILES, MAX_STRETCH // self.tile)


TUNING = Tuning()
_ROW = {"AMAX": AMAX, "SMALLEST": SMALLEST, "SUM_SQUARES": SUM_SQUARES, "COUNTS": COUNTS}


@triton.jit
def _accumulate(
    values,
    other,
    row,
    numel,
    tiles,
    BRAIN: tl.constexpr,
    WIDE: tl.constexpr,
    OTHER: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADROOM: tl.constexpr,
    TILE: tl.constexpr,
    AMAX: tl.constexpr,
    SMALLEST: tl.constexpr,
    SUM_SQUARES: tl.constexpr,
    COUNTS: tl.constexpr,
) -> None:
    """One program a stretch of `tiles` tiles."""
    first = tl.program_id(0).to(tl.int64) * tiles * TILE
    count_stretch(
        values + first,
        other + first,
        row,
        tl.minimum(numel - first, tiles * TILE).to(tl.int32),
        BRAIN,
        WIDE,
        OTHER,
        WINDOW,
        HEADROOM,
        TILE,
        AMAX,
        SMALLEST,
        SUM_SQUARES,
        COUNTS,
    )


@cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class TritonSums:
    """Sums of tensors of one dtype on one device, on which they are held."""

    def __init__(self, dtype: torch.dtype, device: torch.device, tuning: Tuning = TUNING) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self.numel = 0
        self.rows = torch.from_numpy(self.layout.empty()).to(device)
        self._tuning = tuning
        self._processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        )

    def add(self, values: Tensor) -> None:
        """Count a contiguous tensor."""
        self._launch(values.detach().resolve_neg(), None)

    def add_difference(self, new: Tensor, old: Tensor) -> None:
        """Count `new - old` of two contiguous float32 tensors."""
        self._launch(new.detach(), old.detach())

    def _launch(self, values: Tensor, old: Tensor | None) -> None:
        numel = values.numel()
        self.numel += numel
        if not numel:
            return
        tuning = self._tuning
        tiles = tuning.tiles(numel, self._processors)
        brain = values.dtype is torch.bfloat16
        values = values.view(torch.int16) if brain else values
        with torch.cuda.device_of(values):
            _accumulate[(triton.cdiv(numel, tiles * tuning.tile),)](
                values,
                values if old is None else old,
                self.rows,
                numel,
                tiles,
                BRAIN=brain,
                WIDE=self.layout is FLOAT64,
                OTHER=(READ if old is None else SUBTRACT).value,
                WINDOW=tuning.window,
                HEADROOM=tuning.headroom,
                TILE=tuning.tile,
                **_ROW,
                num_warps=tuning.warps,
            )
