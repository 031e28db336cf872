"""Generations of NVIDIA's GPUs, by compute capability: which is newer, and which have Tensor Cores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

Capability = tuple[int, int]

# Ranks of the matrix instructions: mma.sync of Volta, Turing and Ampere, then wgmma, then tcgen05. Ada and the
# Blackwell of capability 12 run Ampere's mma.sync at full rate.
RANK: Mapping[str, int] = MappingProxyType(
    {"volta": 1, "turing": 2, "ampere": 3, "ada": 3, "blackwell-rtx": 3, "hopper": 4, "blackwell": 5}
)


def newest(generations: Iterable[str | None]) -> str | None:
    """The newest of the known ones; None where there is none."""
    return max((each for each in generations if each), key=RANK.__getitem__, default=None)


def generation_of(capability: Capability | None) -> str | None:
    """The generation of a compute capability such as (9, 0); None before Volta and where unknown."""
    if capability is None:
        return None
    major, minor = capability
    if major == 7:
        return "turing" if minor >= 5 else "volta"
    if major == 8:
        return "ada" if minor == 9 else "ampere"
    return {9: "hopper", 10: "blackwell", 11: "blackwell", 12: "blackwell-rtx"}.get(major)


# Turing's small cards have the compute capability of those with Tensor Cores, and none.
_WITHOUT = re.compile(r"GTX 16\d0|\bMX[45]50\b|\bT(?:[456]00|550|1000|1200|2000)\b")


def has_tensor_cores(gpu: str, capability: Capability | None) -> bool:
    """Whether NVIDIA's GPU of this name and capability has any, as far as is known."""
    return not _WITHOUT.search(gpu) and (capability is None or capability >= (7, 0))
