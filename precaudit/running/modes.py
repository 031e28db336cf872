"""Switching a model to eval mode, and restoring the modes of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature

from torch import nn


def to_eval(model: nn.Module) -> nn.Module:
    """Switch the model to eval mode. Modules made by `torch.export` refuse and are left as they are; where a class uses
    the names `train` or `eval` for something else, only the `training` flags are set."""
    modules = list(model.modules())
    ordinary = all(_has_modes(type(module)) for module in modules)
    for module in modules:
        if not ordinary:
            module.training = False
            continue
        with suppress(NotImplementedError):
            module.eval()
    return model


def _has_modes(kind: type[nn.Module]) -> bool:
    """Whether `train(mode)` and `eval()` have the signatures of nn.Module's."""
    train, evaluate = (list(signature(method).parameters) for method in (kind.train, kind.eval))
    return train[1:2] == ["mode"] and len(evaluate) == 1


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode in this block; its modules' modes are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    to_eval(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
