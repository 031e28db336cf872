"""A model's outputs for one more call in eval mode; under a plan, also their deviation from float32's, and the modules
that cause it."""

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
from precaudit.instrument.torch_function import floats_in, plain
from precaudit.model import Plan
from precaudit.running.job import OutputDeviation
from precaudit.running.modes import eval_mode

_PARTS = 32
"""Groups that the modules are divided into in the search for the cause, at each level."""
_MENDED = 0.5
"""A group removes a deviation if at most this share of it remains."""
_DRAWS = 8
"""Random roundings of the weights that estimate the sensitivity of outputs."""
_FAR = 2.0
"""How many times their rounding error those move the weights, as a plan rounds activations too."""
_SAMPLES = 8
"""In outputs with at least as many samples, single ones may differ."""
Outputs = list[torch.Tensor]
"""All floating-point outputs of a call, each of shape (samples, values)."""


@dataclass(frozen=True)
class PlanComparison:
    """The plan under test, a context manager that runs models `under` another plan (None: float32), and how many
    `seconds` the calls of one model may take in total."""

    plan: Plan
    under: Callable[[Plan | None], AbstractContextManager[None]]
    seconds: float = math.inf


class _Budgeted:
    """Calls a function while its last duration fits into the seconds that are left; then raises TimeoutError."""

    def __init__(self, call: Callable[..., Outputs], seconds: float) -> None:
        self._call, self._left, self._last = call, seconds, 0.0

    def __call__(self, **given: Any) -> Outputs:
        if self._last > self._left:
            raise TimeoutError
        start = time.perf_counter()
        outputs = self._call(**given)
        self._last = time.perf_counter() - start
        self._left -= self._last
        return outputs


@dataclass(frozen=True)
class Evaluation:
    """All floating-point outputs, flat. `deviation` is None where there is no plan, or no float32 output to compare
    with."""

    values: torch.Tensor
    deviation: OutputDeviation | None = None


def evaluate(module: nn.Module, args: Any, kwargs: Any, comparison: PlanComparison | None) -> Evaluation:
    """The model's outputs for one more call in eval mode and, given a plan, their deviation from float32's."""
    call = _Budgeted(partial(_outputs, module, args, kwargs), comparison.seconds if comparison else math.inf)
    with eval_mode(module):
        planned = call()
        found = Evaluation(torch.cat([each.flatten() for each in planned]) if planned else torch.empty(0))
        if comparison is None or not found.values.numel():
            return found
        try:
            return replace(found, deviation=_deviation(module, call, planned, comparison))
        except (Exception, SystemExit):  # a model whose cache grows with every call, say; or it takes too long
            return found


def _outputs(module: nn.Module, args: Any, kwargs: Any, seed: int = 0) -> Outputs:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    outputs = map(plain, floats_in(module(*args, **kwargs)))
    return [t.detach().float().cpu().reshape(len(t) if t.dim() and t.numel() else 1, -1) for t in outputs]


def _deviation(module: nn.Module, call: _Budgeted, planned: Outputs, comparison: PlanComparison) -> OutputDeviation:
    """The deviation of the worst output. Each is compared by itself: a large one would hide a small one."""
    plan = comparison.plan
    with comparison.under(None):
        exact = call()
        with _rounded(module, plan.narrowest):
            chances = _chances(call(), exact)
    each = [OutputDeviation(*far) for far in zip(_distances(planned, exact, 1), chances, strict=True)]
    if _worst(each, plan).is_fault(plan):
        each = _confirmed(each, module, call, exact, comparison)
    found = _worst(each, plan)
    if not found.is_fault(plan):
        return found

    def without(group: Collection[str]) -> float:
        with comparison.under(_widened(plan, group)):
            left = _distances(call(), exact, 1)
        return max(replace(one, error=error).excess(plan) for one, error in zip(each, left, strict=True))

    def mends(group: Collection[str]) -> bool:
        return without(group) < min(1.0, _MENDED * found.excess(plan))

    with suppress(TimeoutError):
        return replace(found, causes=_causes(plan, without, mends))
    return found


def _worst(each: list[OutputDeviation], plan: Plan) -> OutputDeviation:
    return max(each, key=lambda one: one.excess(plan))


def _confirmed(
    each: list[OutputDeviation], module: nn.Module, call: _Budgeted, exact: Outputs, comparison: PlanComparison
) -> list[OutputDeviation]:
    """The deviations, confirmed by more calls. The error is the smaller one of two calls, since a model may carry state
    from call to call. `chance` also covers what another seed changes, since random numbers may differ between formats,
    and several roundings of the weights, since a single one may flip no discrete choice."""
    with comparison.under(comparison.plan):
        again = _distances(call(), exact, 1)
    with comparison.under(None):
        by_chance = [_chances(call(seed=1), exact)]
        for draw in range(1, 1 + _DRAWS):
            with _rounded(module, comparison.plan.narrowest, draw):
                by_chance.append([change / _FAR for change in _chances(call(), exact)])
    errors = [min(one.error, error) for one, error in zip(each, again, strict=True)]
    chances = [max(one.chance, *others) for one, *others in zip(each, *by_chance, strict=True)]
    return [OutputDeviation(*far) for far in zip(errors, chances, strict=True)]


def _causes(
    plan: Plan, without: Callable[[Collection[str]], float], mends: Callable[[Collection[str]], bool]
) -> tuple[str, ...]:
    """The fewest modules found that, run in float32, remove the fault: groups of modules are added in the order of the
    error that remains without each, until they suffice, and then subdivided. () where all of them together don't."""
    low = plan.low_modules
    while low:
        size = -(-len(low) // _PARTS)
        groups = sorted((low[i : i + size] for i in range(0, len(low), size)), key=without)
        first = list(accumulate(groups))
        enough = bisect_left(first, True, key=mends)
        fewer = first[enough] if enough < len(first) else ()
        if size == 1 or len(fewer) > len(low) / 2:
            return _needed(fewer, mends)
        low = fewer
    return ()


def _needed(causes: Sequence[str], mends: Callable[[Collection[str]], bool]) -> tuple[str, ...]:
    """The causes without those that the others make redundant, tried from the innermost module outwards."""
    for each in sorted(causes, key=lambda fqn: -fqn.count(".")) if len(causes) <= _PARTS else ():
        fewer = [fqn for fqn in causes if fqn != each]
        causes = fewer if fewer and mends(fewer) else causes
    return tuple(causes)


def _widened(plan: Plan, group: Collection[str]) -> Plan:
    modules = {**plan.modules, **dict.fromkeys(group, "float32")}
    return replace(plan, modules=modules, ops=tuple(op for op in plan.ops if op.fqn not in group))


@contextmanager
def _rounded(module: nn.Module, format_name: str, draw: int = 0) -> Iterator[None]:
    """Run with the weights rounded to the format; for `draw` > 0 they move `_FAR` times as far, a random half of them
    the other way."""
    change, generator = rounded_to(format_name), torch.Generator().manual_seed(draw)
    parameters = [p for p in module.parameters() if p.is_floating_point() and not is_lazy(p)]
    before = [parameter.detach().clone() for parameter in parameters]

    def moved(values: torch.Tensor) -> torch.Tensor:
        moves = torch.ones(())
        if draw:
            moves = _FAR * (2 * torch.randint(2, values.shape, generator=generator, dtype=torch.int8) - 1)
        return values + moves.to(values) * (change(values) - values)

    try:
        _set(parameters, [moved(values) for values in before])
        yield
    finally:
        _set(parameters, before)


@torch.no_grad()
def _set(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _chances(outputs: Outputs, exact: Outputs) -> list[float]:
    """The relative change of each output by chance. Where it changes how many values there are, all may be others."""
    return _distances(outputs, exact, apart=1.0)


def _distances(outputs: Outputs, exact: Outputs, left_out: int = 0, apart: float = 0.0) -> list[float]:
    """The relative difference of each output; `apart` where shapes differ, as where a threshold decides how many values
    there are. Of `_SAMPLES` or more samples the `left_out` worst are ignored, as near ties may be decided the other
    way."""
    if [each.shape for each in outputs] != [each.shape for each in exact]:
        return [apart] * len(exact)
    return [
        _distance(values, right, left_out if len(right) >= _SAMPLES else 0)
        for values, right in zip(outputs, exact, strict=True)
    ]


def _distance(values: torch.Tensor, exact: torch.Tensor, left_out: int) -> float:
    """Relative l2 difference over values that are finite in both; `left_out` worst rows are ignored. It is taken in
    units of the largest one, whose square float32 may not have."""
    both = values.isfinite() & exact.isfinite()
    unit = float(exact[both].abs().amax()) if both.any() else 0.0
    if not unit:
        return 0.0
    size = float((exact[both] / unit).norm())
    energies = torch.where(both, (values - exact) / unit, 0.0).square().sum(1).sort().values
    return math.sqrt(float(energies[: len(energies) - left_out].sum())) / size
