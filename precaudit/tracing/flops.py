"""FLOPs of products, by torch's own count."""

from __future__ import annotations

import torch

from precaudit.execution.policy import ACCUMULATING
from precaudit.instrument.torch_function import Call, map_tensors

COUNTED = (ACCUMULATING | {"tensordot", "inner"}) - {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Products but for those whose shapes tell as much, where torch would take every step by itself."""


@torch.no_grad()
def counted_flops(call: Call) -> float | None:
    """FLOPs of a call, counted by torch on meta tensors; None where there is no product or meta tensors fail."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch._C.DisableTorchFunction(), FlopCounterMode(display=False) as counter:
            map_tensors(_on_meta, call)()
    except Exception:  # of any kind, as for nested tensors: the call itself may well succeed
        return None
    return float(counter.get_total_flops()) or None


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
