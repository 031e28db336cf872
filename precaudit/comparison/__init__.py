"""Comparison of reports: matching, noise, thresholds and trends. Doesn't import torch."""
