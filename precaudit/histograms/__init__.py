"""Exponent histograms: the mathematics, and one fused pass per tensor on CPU, CUDA or plain torch."""
