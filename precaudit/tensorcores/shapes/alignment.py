"""The sizes that Tensor Cores want: cuBLAS and cuDNN run products well where the dimensions that lie contiguous in
memory are multiples of 16 bytes, best of 128."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod

from precaudit.formats import ALIASES, FORMATS

ALIGNED_BITS = 128
BEST = 8
"""So many times 16 bytes make a whole row of memory."""
CHEAP = 1.02
"""A padding to whole rows is asked for where it makes a dimension larger by no more than this."""
AFFORDABLE = 1.25
"""Padding that adds more work than this is mentioned, not urged."""
BITS = {"fp4": 4, "int8": 8, **{name: FORMATS[ALIASES.get(name, name)].storage_bits for name in (*FORMATS, *ALIASES)}}


@dataclass(frozen=True)
class Padding:
    """A dimension by its name, and the size to pad it to."""

    dimension: str
    size: int
    target: int


def multiple(format_name: str) -> int:
    """How many values fill 16 bytes."""
    return ALIGNED_BITS // BITS[format_name]


def misaligned(dims: Iterable[tuple[str, int]], format_name: str) -> list[Padding]:
    """Those of the dimensions that are no multiple of 16 bytes."""
    small = multiple(format_name)
    return [Padding(name, size, _target(size, small)) for name, size in dims if size % small]


def _target(size: int, small: int) -> int:
    best = ceil(size / (BEST * small)) * BEST * small
    return best if best <= CHEAP * size else ceil(size / small) * small


def sizes(padding: Sequence[Padding]) -> str:
    return " and ".join(f"{each.dimension} = {each.size}" for each in padding)


def growth(padding: Sequence[Padding]) -> float:
    """How many times the product's work the padding makes it."""
    return prod(each.target / each.size for each in padding)


def advice(padding: Sequence[Padding]) -> str:
    what = f"pad {' and '.join(f'{each.dimension} from {each.size} to {each.target}' for each in padding)}"
    dear = growth(padding) > AFFORDABLE
    return f"measure before you {what}: it adds {growth(padding) - 1:.0%} to the product's work" if dear else what
