"""How sums are laid out: one row of 64-bit integers, the same for every kernel, so that all agree bit for bit.

A row holds the largest finite magnitude's bits, the smallest non-zero magnitude's bits less one, the sum of
squares (a float64 in the same memory), the largest magnitude's bits again, which may be set back to zero to learn
of what comes after, and then the counts: one a subnormal binade, one a normal binade, and last the non-finite
values. Zeros are what is missing to the number of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from precaudit.model import Exponents, TensorStats

Row = np.ndarray[Any, np.dtype[np.int64]]

AMAX, SMALLEST, SUM_SQUARES, PEAK, COUNTS = range(5)
NOTHING = np.iinfo(np.int64).max  # the smallest magnitude of no value at all


@dataclass(frozen=True)
class Layout:
    """A binary format that values are counted in; narrower ones are widened to it, which is exact."""

    mantissa: int
    exponent_bits: int
    bits: type[np.signedinteger[Any]]
    value: type[np.floating[Any]]

    @cached_property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @cached_property
    def lowest(self) -> int:
        """Exponent of the smallest subnormal, and of the first count."""
        return 1 - self.bias - self.mantissa

    @cached_property
    def infinity(self) -> int:
        """The bits of infinity: finite magnitudes lie below."""
        return (2**self.exponent_bits - 1) << self.mantissa

    @cached_property
    def counts(self) -> int:
        return self.mantissa + 2**self.exponent_bits - 1

    @cached_property
    def width(self) -> int:
        return COUNTS + self.counts

    def empty(self) -> Row:
        row = np.zeros(self.width, np.int64)
        row[SMALLEST] = NOTHING
        return row

    def stats(self, numel: int, rows: Sequence[Row]) -> TensorStats:
        """The statistics of `numel` values from all rows."""
        row = rows[0] if len(rows) == 1 else _combined(rows)
        counts, smallest = row[COUNTS:], int(row[SMALLEST]) + 1
        return TensorStats(
            numel=numel,
            amax=self.value_of(int(row[AMAX])),
            amin_nonzero=self.value_of(smallest) if smallest < self.infinity else 0.0,
            sum_squares=float(row.view(np.float64)[SUM_SQUARES]),
            zeros=numel - int(counts.sum()),
            nonfinite=int(counts[-1]),
            exponents=self._exponents(counts[:-1]),
        )

    def _exponents(self, counts: Row) -> Exponents:
        used = counts.nonzero()[0]
        if not used.size:
            return Exponents()
        low, high = int(used[0]), int(used[-1])
        return Exponents(self.lowest + low, tuple(counts[low : high + 1].tolist()))

    def value_of(self, bits: int) -> float:
        """The number with these bits."""
        return float(np.array(bits, self.bits).view(self.value))


def _combined(rows: Sequence[Row]) -> Row:
    combined: Row = np.sum(rows, axis=0)
    combined[AMAX] = max(row[AMAX] for row in rows)
    combined[PEAK] = max(row[PEAK] for row in rows)
    combined[SMALLEST] = min(row[SMALLEST] for row in rows)
    combined.view(np.float64)[SUM_SQUARES] = sum(row.view(np.float64)[SUM_SQUARES] for row in rows)
    return combined


FLOAT32 = Layout(23, 8, np.int32, np.float32)
FLOAT64 = Layout(52, 11, np.int64, np.float64)
