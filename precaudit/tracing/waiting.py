"""Weight gradients on a GPU, which are recorded together at the end of the backward pass."""

from __future__ import annotations

import torch

from precaudit.histograms import Addition, add_all

LIMIT = 2**28
"""Limit in bytes. The gradients of the first micro-batch are the parameters' own `grad` and need no extra memory."""


def may_wait(parameter: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether the gradient stays unchanged until its backward pass is over.

    Hooks may change it in place, and data-parallel wrappers do, as they reduce gradients in place.
    """
    return (
        gradient.is_cuda
        and type(gradient) is torch.Tensor
        and len(parameter._backward_hooks or ()) == 1
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


class WaitingGradients:
    """Queued gradients. They are aliases, so that autograd can still use the gradient itself as the parameter's
    `grad`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Addition] = {}
        self._bytes = 0

    def add(self, parameter: torch.Tensor, addition: Addition) -> None:
        """Queue a gradient, in a backward pass. The queue is flushed before a parameter's second gradient, which
        autograd adds in place to the first."""
        if id(parameter) in self._waiting:
            self.flush()
        if not self._waiting:
            torch.autograd.Variable._execution_engine.queue_callback(self.flush)
        self._waiting[id(parameter)] = addition
        self._bytes += addition.values.nbytes
        if self._bytes > LIMIT:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        add_all(waiting.values())
