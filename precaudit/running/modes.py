"""Evaluation mode, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import nn


def to_eval(model: nn.Module) -> nn.Module:
    """In eval mode. A module that `torch.export` made has its mode in its graph and refuses, wherever it is."""
    for module in model.modules():
        with suppress(NotImplementedError):
            module.eval()
    return model


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    to_eval(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
