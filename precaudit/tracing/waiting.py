"""Weight gradients on a GPU that wait to be counted together, at the end of their backward pass."""

from __future__ import annotations

import torch

from precaudit.histograms import Addition, add_all

LIMIT = 2**28
"""Bytes that may wait; the gradients of a first micro-batch are the parameters' own `grad` and cost no memory."""


def may_wait(parameter: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether nothing that torch knows of changes a gradient in place before its backward pass is over.

    Hooks may, and so do data-parallel wrappers, which reduce gradients where they lie.
    """
    return (
        gradient.is_cuda
        and type(gradient) is torch.Tensor
        and len(parameter._backward_hooks or ()) == 1
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


class WaitingGradients:
    """Aliases, which keep the memory but let autograd take the gradient itself over as the parameter's `grad`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Addition] = {}
        self._bytes = 0

    def add(self, parameter: torch.Tensor, addition: Addition) -> None:
        """To be called in a backward pass; a parameter's next gradient is added in place to the one that waits."""
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
