"""Statistics by Python's own floats: the definition that every kernel is held against."""

import math
from collections import Counter
from typing import Any

import torch

from precaudit.model import Exponents, TensorStats

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


def reference(*tensors: torch.Tensor) -> TensorStats:
    """What observing the tensors together must yield."""
    values = [v for tensor in tensors for v in tensor.detach().cpu().reshape(-1).to(torch.float64).tolist()]
    finite = [abs(v) for v in values if math.isfinite(v)]
    nonzero = [v for v in finite if v]
    counts = Counter(math.frexp(v)[1] - 1 for v in nonzero)
    low, high = min(counts, default=0), max(counts, default=-1)
    return TensorStats(
        numel=len(values),
        amax=max(finite, default=0.0),
        amin_nonzero=min(nonzero, default=0.0),
        sum_squares=sum_squares(nonzero),
        zeros=len(finite) - len(nonzero),
        nonfinite=len(values) - len(finite),
        exponents=Exponents(low, tuple(counts[e] for e in range(low, high + 1))) if counts else Exponents(),
    )


def sum_squares(values: list[float]) -> float:
    try:
        return math.fsum(v * v for v in values)
    except OverflowError:
        return math.inf


def same(measured: TensorStats, expected: TensorStats) -> bool:
    """Equal in everything that is counted or picked; sums of squares up to the order of summation."""
    close = measured.sum_squares == expected.sum_squares or math.isclose(
        measured.sum_squares, expected.sum_squares, rel_tol=1e-10
    )
    return close and all(
        getattr(measured, name) == getattr(expected, name)
        for name in ("numel", "amax", "amin_nonzero", "zeros", "nonfinite", "exponents")
    )


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """All values of a format of up to 16 bits."""
    bits = 8 * dtype.itemsize
    return torch.arange(2**bits, dtype=torch.int32).to(torch.uint8 if bits == 8 else torch.uint16).view(dtype)


def random_patterns(dtype: torch.dtype, numel: int, seed: int = 0) -> torch.Tensor:
    """Random bits: every exponent, subnormals, infinities and NaNs of many kinds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (numel * dtype.itemsize,), dtype=torch.uint8, generator=generator).view(dtype)


def stats_of(sums: Any) -> TensorStats:
    """What a kernel's sums say, without an accumulator around them."""
    rows = [sums.rows.cpu().numpy()] if isinstance(sums.rows, torch.Tensor) else sums.rows
    return sums.layout.stats(sums.numel, rows)
