"""Cross entropy of half logits. Autocast has no entry for it, and what it calls inside torch, `log_softmax`, is asked
for the logits' own dtype, which overrides autocast's float32: the log-probabilities are rounded to half, and the
backward pass takes the probabilities from them. Only what follows, the mean of those of the targets, is in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.execution.rounding import HALVES
from precaudit.instrument.torch_function import Call


class _RoundedLogarithms(TorchDispatchMode):
    """Rounds what `log_softmax` of float32 returns, below autograd, which saves it for the backward pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode the function comes as a whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        return result.to(self._dtype).float() if func is torch.ops.aten._log_softmax.default else result


def logarithms_rounded(call: Call) -> AbstractContextManager[Any]:
    """In this block a cross entropy, widened to float32, rounds its log-probabilities as on CUDA; any other operation
    is unchanged."""
    half = call.op == "cross_entropy_loss" and bool(call.args) and call.args[0].dtype in HALVES
    return _RoundedLogarithms(call.args[0].dtype) if half else nullcontext()
