"""Tensor Core usage: kernel rules, traces, attribution to layers, eligibility, peaks and counters."""
