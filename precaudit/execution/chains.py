"""Products of three or more factors, and powers, expanded into pairwise products as torch does it: in half precision
every intermediate result is rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from precaudit.instrument.torch_function import Call

_DOTS = frozenset("chain_matmul linalg_multi_dot multi_dot".split())
_POWERS = frozenset({"matrix_power", "linalg_matrix_power"})
Multiply = Callable[[Callable[..., torch.Tensor], tuple[Any, ...]], torch.Tensor]
"""(function, arguments) -> the product of one pair."""


def chained(call: Call, multiply: Multiply) -> torch.Tensor | None:
    """The product of all factors, pair by pair; None for an operation that isn't such a chain."""
    op, (_, args, kwargs), factors = call.op, call, call.given
    if op in _POWERS:
        return _power(factors[0], kwargs["n"] if "n" in kwargs else args[1], multiply)
    if len(factors) < 3:
        return None
    if op in _DOTS:
        return _dots(factors, multiply)
    return _contracted(args[0], factors, kwargs.get("path"), multiply) if op == "einsum" else None


def _contracted(equation: str, factors: list[torch.Tensor], path: Sequence[int] | None, multiply: Multiply) -> Any:
    """An einsum by its contraction path, each step of which appends a pairwise product; without one, from left to
    right."""
    inputs, explicit, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not explicit:
        labels = inputs.replace(",", "").replace(".", "")
        output = "..." * ("..." in inputs) + "".join(sorted(each for each in labels if labels.count(each) == 1))
    last = len(factors) - 1
    left_to_right = [(0, 1), *((0, last - step) for step in range(1, last))]
    pairs = zip(path[::2], path[1::2], strict=True) if path else left_to_right
    for i, j in map(sorted, pairs):
        b, a = (terms.pop(j), factors.pop(j)), (terms.pop(i), factors.pop(i))
        term = _kept(a[0] + b[0], "".join(terms) + output) if factors else output
        terms.append(term)
        factors.append(multiply(torch.einsum, (f"{a[0]},{b[0]}->{term}", a[1], b[1])))
    return factors[0]


def _kept(labels: str, needed: str) -> str:
    """The labels that a pairwise product keeps: those that other factors or the result need."""
    letters = dict.fromkeys(labels.replace(".", ""))
    return "..." * ("..." in labels) + "".join(letter for letter in letters if letter in needed)


def _dots(factors: list[torch.Tensor], multiply: Multiply) -> torch.Tensor:
    """A chain of matrices, possibly with vectors at the ends, in the order with the fewest multiplications."""
    sizes = [1 if factors[0].ndim == 1 else factors[0].shape[0], *(factor.shape[-1] for factor in factors)]
    if factors[-1].ndim == 1:
        sizes[-2:] = [factors[-1].shape[0], 1]

    # On equal cost torch takes the leftmost split, except for three factors.
    return _in_order(factors, tuple(sizes), -1 if len(factors) == 3 else 1, multiply)


def _power(matrix: torch.Tensor, n: int, multiply: Multiply) -> torch.Tensor:
    """Matrix power by repeated squaring."""
    if n in (0, 1):
        return torch.linalg.matrix_power(matrix, n)
    square, result = torch.linalg.inv(matrix) if n < 0 else matrix, None
    for place, bit in enumerate(reversed(f"{abs(n):b}")):
        square = multiply(torch.matmul, (square, square)) if place else square
        if bit == "1":
            result = square if result is None else multiply(torch.matmul, (result, square))
    assert result is not None
    return result


def _in_order(factors: list[torch.Tensor], sizes: tuple[int, ...], tie: int, multiply: Multiply) -> torch.Tensor:
    if len(factors) == 1:
        return factors[0]
    split = _best(sizes, tie)[1]
    left = _in_order(factors[:split], sizes[: split + 1], tie, multiply)
    return multiply(torch.matmul, (left, _in_order(factors[split:], sizes[split:], tie, multiply)))


@lru_cache(maxsize=4096)
def _best(sizes: tuple[int, ...], tie: int) -> tuple[int, int]:
    """The number of multiplications of the cheapest order, and how many factors are in its left half."""
    costs = [
        (_best(sizes[: k + 1], tie)[0] + _best(sizes[k:], tie)[0] + sizes[0] * sizes[k] * sizes[-1], k)
        for k in range(1, len(sizes) - 1)
    ]
    return min(costs, key=lambda each: (each[0], tie * each[1]), default=(0, 0))
