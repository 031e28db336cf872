"""Exponent histograms: one fused pass per tensor, by numba on CPU, Triton on CUDA, or plain torch."""

from precaudit.histograms.accumulator import (
    Accumulator,
    Addition,
    Peak,
    add_all,
    collect,
    fits,
    observe,
    take_peak,
)

__all__ = ["Accumulator", "Addition", "Peak", "add_all", "collect", "fits", "observe", "take_peak"]
