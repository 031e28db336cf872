"""Where a profile was made: what its figures depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """Versions, processor and device, for a report; `device` is the name of the script's GPU, or "cpu".

    `cuda` is torch's version of CUDA: None without a GPU, and for AMD's, which have a `capability` too.
    """

    python: str = ""
    torch: str = ""
    platform: str = ""
    processor: str = ""
    cpus: int | None = None
    threads: int = 1
    device: str = "cpu"
    cuda: str | None = None
    capability: str | None = None
    created: str = ""
