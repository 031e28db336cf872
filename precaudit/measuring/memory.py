"""Peak memory: what CUDA's allocator gave out, or the resident memory of the whole process on a CPU."""

from __future__ import annotations

import sys

import torch


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int | None:
    """Bytes since `reset_peak` on CUDA; since the process began on a CPU, where the system doesn't forget."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
