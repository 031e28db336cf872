"""How a model answers once more, in eval mode; under a plan, also what of that is the plan's doing."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from precaudit.execution.perturbation import rounded_to
from precaudit.instrument.torchfunction import plain, tensors_in
from precaudit.model import Plan
from precaudit.running.job import Astray
from precaudit.running.modes import eval_mode

_PARTS = 32
_MENDED = 0.5


@dataclass(frozen=True)
class Beside:
    """The plan that is tried, and how models run `under` others meanwhile: None is float32."""

    plan: Plan
    under: Callable[[Plan | None], AbstractContextManager[None]]


@dataclass(frozen=True)
class Answer:
    """All floating-point outputs, flat. `astray` is None where there is no plan, or nothing to hold them against."""

    values: torch.Tensor
    astray: Astray | None = None


def answer(module: nn.Module, args: Any, kwargs: Any, beside: Beside | None) -> Answer:
    call = partial(_values, module, args, kwargs)
    with eval_mode(module):
        found = Answer(call())
        if beside is None or not found.values.numel():
            return found
        try:
            return replace(found, astray=_astray(module, call, found.values, beside))
        except (Exception, SystemExit):  # a cache, say, that grows with every call
            return found


def _values(module: nn.Module, args: Any, kwargs: Any, seed: int = 0) -> torch.Tensor:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    outputs = [t for t in map(plain, tensors_in(module(*args, **kwargs))) if t.is_floating_point()]
    found = [t.detach().float().flatten().cpu() for t in outputs]
    return torch.cat(found) if found else torch.empty(0)


def _astray(module: nn.Module, call: Callable[..., torch.Tensor], planned: torch.Tensor, beside: Beside) -> Astray:
    with beside.under(None):
        exact = call()
        with _rounded(module, beside.plan.narrowest):
            chance = _distance(call(), exact)
    found = Astray(_distance(planned, exact), chance)
    if found.is_fault(beside.plan):
        found = _surely(found, call, exact, beside)
    if not found.is_fault(beside.plan):
        return found

    def without(group: Collection[str]) -> float:
        with beside.under(_wide(beside.plan, group)):
            return _distance(call(), exact)

    cause = _worst(beside.plan, without)
    mended = cause is not None and without([cause]) < _MENDED * found.error
    return replace(found, cause=cause) if mended else found


def _surely(found: Astray, call: Callable[..., torch.Tensor], exact: torch.Tensor, beside: Beside) -> Astray:
    """What of it stays where the model is asked again, which may carry a state from call to call, and is beyond what
    it draws, which need not be alike in two formats."""
    with beside.under(beside.plan):
        again = _distance(call(), exact)
    with beside.under(None):
        drawn = _distance(call(seed=1), exact)
    return Astray(min(found.error, again), max(found.chance, drawn))


def _worst(plan: Plan, without: Callable[[Collection[str]], float]) -> str | None:
    """The module with which in float32 least is left of the error."""
    group = [fqn for fqn, name in plan.modules.items() if name != "float32"]
    while len(group) > 1:
        size = -(-len(group) // _PARTS)
        group = min((group[i : i + size] for i in range(0, len(group), size)), key=without)
    return group[0] if group else None


def _wide(plan: Plan, group: Collection[str]) -> Plan:
    modules = {**plan.modules, **dict.fromkeys(group, "float32")}
    return replace(plan, modules=modules, ops=tuple(op for op in plan.ops if op.fqn not in group))


@contextmanager
def _rounded(module: nn.Module, format_name: str) -> Iterator[None]:
    """With its weights rounded once to the format."""
    change = rounded_to(format_name)
    parameters = [p for p in module.parameters() if p.is_floating_point() and not is_lazy(p)]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        _set(parameters, [change(values) for values in before])
        yield
    finally:
        _set(parameters, before)


@torch.no_grad()
def _set(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _distance(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, of what is finite; 0 where it can't be told: other shapes are chosen at a threshold, say."""
    if values.shape != exact.shape:
        return 0.0
    both = values.isfinite() & exact.isfinite()
    size = float(exact[both].norm())
    return float((values - exact)[both].norm()) / size if size else 0.0
