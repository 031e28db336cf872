"""Sums of CUDA tensors by a Triton kernel: one read of the values, sums kept on the device, no waiting for it."""

# Triton specialises the kernel by the types that it takes; annotations would be about Python objects.
# ruff: noqa: ANN001
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, SMALLEST, SUM_SQUARES

BLOCK = 2048
_PROGRAMS_PER_PROCESSOR = 4  # as many as fit by their registers


@triton.jit
def _accumulate(
    values,
    row,
    sums,
    numel,
    WIDE: tl.constexpr,
    BRAIN: tl.constexpr,
    MANTISSA: tl.constexpr,
    EXPONENTS: tl.constexpr,
    AMAX: tl.constexpr,
    SMALLEST: tl.constexpr,
    SUM_SQUARES: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    value_type: tl.constexpr = tl.float64 if WIDE else tl.float32
    bits_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    highest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if WIDE else 0x7FFFFFFF
    infinity: tl.constexpr = (EXPONENTS - 1) << MANTISSA
    binades: tl.constexpr = 64 if WIDE else 32  # more than subnormals have; the last is for all others
    # Fours that one thread loads are reduced at once: fewer registers, so more programs at a time.
    fours: tl.constexpr = [BLOCK // 4, 4]
    counts = tl.zeros([EXPONENTS], tl.int32)
    subnormals = tl.zeros([binades], tl.int32)
    largest = tl.zeros([BLOCK // 4], bits_type)
    smallest = tl.full([BLOCK // 4], highest, bits_type)
    squares = tl.zeros([BLOCK // 4], tl.float64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, numel, step):
        offsets = start + tl.arange(0, BLOCK)
        value = tl.load(values + offsets, mask=offsets < numel, other=0)
        if BRAIN:  # bfloat16 comes as integers: the upper halves of float32
            value = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        value = value.to(value_type)
        magnitude = value.to(bits_type, bitcast=True) & highest
        finite = magnitude < infinity
        largest = tl.maximum(largest, tl.max(tl.reshape(tl.where(finite, magnitude, 0), fours), 1))
        below = tl.where(magnitude > 0, magnitude - 1, highest)
        smallest = tl.minimum(smallest, tl.min(tl.reshape(below, fours), 1))
        exact = tl.where(finite, value, 0.0).to(tl.float64)
        squares += tl.sum(tl.reshape(exact * exact, fours), 1)
        counts += tl.histogram((magnitude >> MANTISSA).to(tl.int32), EXPONENTS)
        subnormal = (magnitude > 0) & (magnitude < (1 << MANTISSA))
        if tl.max(subnormal.to(tl.int32), 0) > 0:
            binade = (magnitude.to(value_type).to(bits_type, bitcast=True) >> MANTISSA) - (EXPONENTS // 2 - 1)
            subnormals += tl.histogram(tl.where(subnormal, binade, binades - 1).to(tl.int32), binades)
    tl.atomic_max(row + AMAX, tl.max(largest, 0).to(tl.int64))
    tl.atomic_min(row + SMALLEST, tl.min(smallest, 0).to(tl.int64))
    tl.atomic_add(sums + SUM_SQUARES, tl.sum(squares, 0))
    binade = tl.arange(0, binades)
    tl.atomic_add(row + COUNTS + binade, subnormals.to(tl.int64), mask=(binade < MANTISSA) & (subnormals > 0))
    exponents = tl.arange(0, EXPONENTS)
    tl.atomic_add(row + COUNTS + MANTISSA - 1 + exponents, counts.to(tl.int64), mask=(exponents > 0) & (counts > 0))


class TritonSums:
    """Sums of tensors of one dtype on one device, on which they are held."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self.numel = 0
        self.rows = torch.from_numpy(self.layout.empty()).to(device)
        self._sums = self.rows.view(torch.float64)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        self._programs = processors * _PROGRAMS_PER_PROCESSOR

    def add(self, values: Tensor) -> None:
        """Count a contiguous tensor."""
        numel = values.numel()
        self.numel += numel
        if not numel:
            return
        grid = (min(self._programs, triton.cdiv(numel, BLOCK)),)
        with torch.cuda.device_of(values):
            brain, values = values.dtype is torch.bfloat16, values.detach().resolve_neg()
            self._launch(grid, values.view(torch.int16) if brain else values, numel, brain)

    def add_difference(self, new: Tensor, old: Tensor) -> None:
        self.add(new.detach() - old.detach())

    def _launch(self, grid: tuple[int], values: Tensor, numel: int, brain: bool) -> None:
        _accumulate[grid](
            values,
            self.rows,
            self._sums,
            numel,
            WIDE=self.layout is FLOAT64,
            BRAIN=brain,
            MANTISSA=self.layout.mantissa,
            EXPONENTS=2**self.layout.exponent_bits,
            AMAX=AMAX,
            SMALLEST=SMALLEST,
            SUM_SQUARES=SUM_SQUARES,
            COUNTS=COUNTS,
            BLOCK=BLOCK,
            num_warps=8,
        )
