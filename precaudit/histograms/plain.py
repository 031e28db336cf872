"""Sums of tensors on any device by torch operations: the fallback, and the reference for the other kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, PEAK, SMALLEST, SUM_SQUARES

# Bounds the memory that the intermediate tensors take.
_SLICE = 1 << 22


class PlainSums:
    """Sums of tensors of one dtype on their device; adding never synchronizes with it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.layout = FLOAT64 if dtype is torch.float64 else FLOAT32
        self._bits = torch.int64 if dtype is torch.float64 else torch.int32
        self._value = torch.float64 if dtype is torch.float64 else torch.float32
        self.numel = 0
        home = "cpu" if device.type == "mps" else device  # which has no float64
        self.rows = torch.from_numpy(self.layout.empty()).to(home)

    def add(self, values: Tensor) -> int | None:
        """Add a contiguous tensor; returns how many of its values are non-finite, on CPU only."""
        self.numel += values.numel()
        before = self.rows[-1].clone()
        with torch.no_grad():
            for part in values.detach().resolve_neg().view(-1).split(_SLICE) if values.numel() else ():
                self._count(part.to(self.rows.device, self._value))
        return int(self.rows[-1] - before) if values.is_cpu else None

    def add_difference(self, new: Tensor, old: Tensor) -> int | None:
        return self.add(new.detach() - old.detach())

    def _count(self, values: Tensor) -> None:
        layout, row = self.layout, self.rows
        magnitude = values.view(self._bits) & torch.iinfo(self._bits).max
        finite = magnitude < layout.infinity
        nonzero = magnitude > 0
        largest = torch.where(finite, magnitude, 0).amax()
        row[AMAX].clamp_(min=largest)
        row[PEAK].clamp_(min=largest)
        row[SMALLEST].clamp_(max=torch.where(nonzero, magnitude, torch.iinfo(self._bits).max).amin() - 1)
        row.view(torch.float64)[SUM_SQUARES] += torch.where(finite, values, 0).double().square().sum()
        row[COUNTS:].index_add_(0, self._index(magnitude).clamp_(min=0), nonzero.long())

    def _index(self, magnitude: Tensor) -> Tensor:
        """Place in the counts; a subnormal's exponent is that of its bits as an integer."""
        mantissa = self.layout.mantissa
        biased = magnitude >> mantissa
        subnormal = (magnitude.to(self._value).view(self._bits) >> mantissa) - self.layout.bias
        return torch.where(biased > 0, biased + (mantissa - 1), subnormal).long()
