"""The sizes of a product, convolution or attention, from a trace or from an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Dims = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Product:
    """`dims` are those that want aligned sizes, by the name a person knows them under; `format` is the operands', where
    it is told.

    `reduces` is false for what no matrix unit computes: products with a vector, depthwise convolutions.
    """

    flops: float
    dims: Dims
    reduces: bool = True
    format: str | None = None


def gemm(rows: int, depth: int, columns: int, dims: Dims, batch: int = 1) -> Product:
    return Product(2.0 * batch * rows * depth * columns, dims, reduces=rows > 1 and columns > 1)


def convolution(values: float, channels_in: int, window: Sequence[int], groups: int, dims: Dims) -> Product:
    """`values` are those of the result, or of a transposed convolution's input; `channels_in` those of one group that
    each of them is summed from."""
    return Product(2.0 * values * channels_in * prod(window), dims, reduces=channels_in > 1 or groups == 1)


def attention(rows: float, columns: int, depth: int, value_depth: int) -> Product:
    """The two products of attention, over all rows of all heads."""
    return Product(2.0 * rows * columns * (depth + value_depth), (("head_dim", depth),))
