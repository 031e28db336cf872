"""Exponent histograms: one fused pass per tensor, by numba on CPU, Triton on CUDA, or plain torch."""

from precaudit.histograms.accumulator import Accumulator, collect, fits, observe

__all__ = ["Accumulator", "collect", "fits", "observe"]
