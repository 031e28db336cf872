"""A model's outputs when it is called once more, in eval mode; under a plan, also how far they are from float32's, and
which module is to blame."""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
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
    """The plan that is tried, how models run `under` others meanwhile (None is float32), and how many `seconds` a
    model's answers may take: a call may train for minutes."""

    plan: Plan
    under: Callable[[Plan | None], AbstractContextManager[None]]
    seconds: float = math.inf


class _Timely:
    """A call that is made as long as there is time for one more like it, and then raises."""

    def __init__(self, call: Callable[..., torch.Tensor], seconds: float) -> None:
        self._call, self._left, self._last = call, seconds, 0.0

    def __call__(self, **given: Any) -> torch.Tensor:
        if self._last > self._left:
            raise TimeoutError
        start = time.perf_counter()
        values = self._call(**given)
        self._last = time.perf_counter() - start
        self._left -= self._last
        return values


@dataclass(frozen=True)
class Answer:
    """All floating-point outputs, flat. `astray` is None where there is no plan, or nothing to compare them with."""

    values: torch.Tensor
    astray: Astray | None = None


def answer(module: nn.Module, args: Any, kwargs: Any, beside: Beside | None) -> Answer:
    call = _Timely(partial(_values, module, args, kwargs), beside.seconds if beside else math.inf)
    with eval_mode(module):
        found = Answer(call())
        if beside is None or not found.values.numel():
            return found
        try:
            return replace(found, astray=_astray(module, call, found.values, beside))
        except (Exception, SystemExit):  # a cache, say, that grows with every call; or it takes too long
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

    def mends(group: Collection[str]) -> bool:
        left = replace(found, error=without(group))
        return left.error < _MENDED * found.error and not left.is_fault(beside.plan)

    with suppress(TimeoutError):
        return replace(found, causes=_causes(beside.plan, without, mends))
    return found


def _surely(found: Astray, call: Callable[..., torch.Tensor], exact: torch.Tensor, beside: Beside) -> Astray:
    """With the error that is left in a second call, as a model may carry state from call to call, and a `chance` that
    covers what another seed changes, as random numbers need not be alike in two formats."""
    with beside.under(beside.plan):
        again = _distance(call(), exact)
    with beside.under(None):
        drawn = _distance(call(seed=1), exact)
    return Astray(min(found.error, again), max(found.chance, drawn))


def _causes(
    plan: Plan, without: Callable[[Collection[str]], float], mends: Callable[[Collection[str]], bool]
) -> tuple[str, ...]:
    """The modules that mend it in float32: of groups of them the fewest, by how little of the error is left without
    each, and of these once more. None where all of them don't."""
    low = [fqn for fqn, name in plan.modules.items() if name != "float32"]
    while low:
        size = -(-len(low) // _PARTS)
        groups = sorted((low[i : i + size] for i in range(0, len(low), size)), key=without)
        first = list(accumulate(groups))
        enough = bisect_left(first, True, key=mends)
        fewer = first[enough] if enough < len(first) else []
        if size == 1 or len(fewer) > len(low) / 2:
            return _needed(fewer, mends)
        low = fewer
    return ()


def _needed(causes: Sequence[str], mends: Callable[[Collection[str]], bool]) -> tuple[str, ...]:
    """Without those that others make up for, the innermost first: a module may only hand on what one inside it made."""
    for each in sorted(causes, key=lambda fqn: -fqn.count(".")) if len(causes) <= _PARTS else ():
        fewer = [fqn for fqn in causes if fqn != each]
        causes = fewer if fewer and mends(fewer) else causes
    return tuple(causes)


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
    """The relative difference of the finite values; 0 where shapes differ, as where a threshold chooses how many."""
    if values.shape != exact.shape:
        return 0.0
    both = values.isfinite() & exact.isfinite()
    size = float(exact[both].norm())
    return float((values - exact)[both].norm()) / size if size else 0.0
