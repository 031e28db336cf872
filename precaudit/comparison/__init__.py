"""Comparison of reports: matching, noise, metrics, thresholds and trends. Doesn't import torch."""
