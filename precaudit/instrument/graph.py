"""The graph that autograd keeps behind a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def nodes_of(roots: Iterable[torch.Tensor]) -> Iterator[Any]:
    """Every node that a backward pass from `roots` would run, once. Any: torch's stubs lack what kinds of nodes have,
    and take their metadata for a method."""
    waiting: list[Any] = [root.grad_fn for root in roots]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]
