"""Proving a plan by training with it: trials, statistics, gates and repair."""
