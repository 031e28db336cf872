"""Tensor Core usage: kernel rules, traces, attribution to layers, and what shapes predict."""
