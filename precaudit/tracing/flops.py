"""The work of products whose operands' shapes don't tell it, such as an `einsum`: its equation says what it sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from precaudit.instrument.torchfunction import map_tensors

UNTOLD = frozenset("einsum tensordot inner chain_matmul linalg_multi_dot matrix_power linalg_matrix_power".split())


@torch.no_grad()
def counted_flops(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> float | None:
    """FLOPs of a call by torch's own counter, without the values; None where there is no product or it can't run so."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch._C.DisableTorchFunction(), FlopCounterMode(display=False) as counter:
            func(*map_tensors(_valueless, args), **map_tensors(_valueless, kwargs))
    except (RuntimeError, TypeError, ValueError):
        return None
    return float(counter.get_total_flops()) or None


def _valueless(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
