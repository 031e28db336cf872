"""Finds the modules that cause an error of the gradient or the loss, by running groups of them in low precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from precaudit.model import LossScale, OpFormat, Plan
from precaudit.planning.budget import gradient_error
from precaudit.profiling.audit import PROBE_HEADROOM, Runner
from precaudit.running.job import RunResult, RunSpec

MAX_EVALUATIONS = 64
_SHARE = 0.9
_EXPLAINED = 0.5
_TIE = 0.05
_TELLING = 0.1
Group = tuple[str, ...]
Steps = tuple[int, ...]
Measure = Callable[[RunResult, Collection[Steps]], dict[Steps, float]]
"""The error in each of these pairs of steps; steps that the run did not reach are missing."""
Rank = Callable[[Group], tuple[int, ...]]
"""The order of groups that explain the error equally well, least first."""


@dataclass(frozen=True)
class Contribution:
    """A module's share of the error when it alone runs in low precision."""

    fqn: str
    error: float


def of_gradients(run: RunResult, pairs: Collection[Steps]) -> dict[Steps, float]:
    """The relative squared error of the whole model's gradient, |delta|^2 / |g|^2."""
    found = {steps: gradient_error(str(steps[0]), run.differences) for steps in pairs}
    return {steps: 1 / error.snr if error.snr > 0 else math.inf for steps, error in found.items() if error}


def of_module(fqn: str) -> Measure:
    """The relative squared error of one module's gradient."""

    def measure(run: RunResult, pairs: Collection[Steps]) -> dict[Steps, float]:
        own = tuple(each for each in run.differences if each.fqn == fqn)
        return of_gradients(replace(run, differences=own), pairs)

    return measure


def of_losses(exact: Sequence[float]) -> Measure:
    """The signed relative difference from the float32 losses on the same weights and batches."""

    def measure(run: RunResult, pairs: Collection[Steps]) -> dict[Steps, float]:
        known = min(len(exact), len(run.losses))
        sizes = {steps: sum(abs(exact[step]) for step in steps) for steps in pairs if max(steps) < known}
        changes = {steps: sum(run.losses[step] - exact[step] for step in steps) for steps in sizes}
        return {
            steps: changes[steps] / size if math.isfinite(changes[steps]) else math.inf
            for steps, size in sizes.items()
            if size > 0
        }

    return measure


def whole_error(spec: RunSpec, plan: Plan, runner: Runner, measure: Measure) -> float:
    """The error of the whole plan, averaged over the saved steps; 0 where there are none."""
    errors = _whole_errors(spec, plan, runner, measure)
    return fmean(errors.values()) if errors else 0.0


def _whole_errors(spec: RunSpec, plan: Plan, runner: Runner, measure: Measure) -> dict[Steps, float]:
    """The error of the whole plan in each pair of saved steps; {} where there are none."""
    steps, low = _in_pairs(spec.probe_save), _low_modules(plan)
    return _errors(spec, runner, dict.fromkeys(steps, _only(plan, low)), measure) if steps and low else {}


def contributions(
    spec: RunSpec, plan: Plan, runner: Runner, products: Collection[str] = (), measure: Measure = of_gradients
) -> list[Contribution]:
    """The modules that cause most of the error, largest first. Of equally good explanations, modules without products
    (`products` names the others) are preferred, as float32 costs nothing there.

    `spec` is a replay of a run whose gradients were saved at its `probe_save` steps. Usually, the error that a module
    adds when it alone is low explains the plan's. Where that is less than half of the plan's error, modules amplify the
    rounding of others (a norm by hand squares a half result), and the error that disappears when a module is wide
    counts. Of equally good ones that is the last: a wide module frees those behind it too, which follow its output.
    Errors are compared with the whole plan's in the same steps, since batches differ and may not reach the module.
    """
    everything, products = _low_modules(plan), frozenset(products)
    full_errors = _whole_errors(spec, plan, runner, measure)
    typical = fmean(full_errors.values()) if full_errors else 0.0
    if typical == 0:
        return []
    full_errors = _telling(full_errors)
    shares = partial(_shares, spec, runner, measure, full_errors)

    def alone(groups: Sequence[Group]) -> dict[Group, float]:
        return shares({group: _only(plan, group) for group in groups})

    def removed(groups: Sequence[Group]) -> dict[Group, float]:
        return _removed(shares({group: _only(plan, set(everything) - set(group)) for group in groups}))

    def costly(group: Group) -> tuple[int, ...]:
        return (products.issuperset(group),)

    def costly_or_early(group: Group) -> tuple[int, ...]:
        return *costly(group), -everything.index(group[0])

    found = _search(everything, len(full_errors), alone, costly)
    if sum(share for _, share in found) < _EXPLAINED:
        found = _search(everything, len(full_errors), removed, costly_or_early)
    return [Contribution(fqn, share * typical) for fqn, share in found]


def culprit(
    spec: RunSpec, plan: Plan, runner: Runner, fqn: str, ops: Sequence[str], measure: Measure = of_gradients
) -> str | None:
    """The operation of a module that, run in float32, takes most of the plan's error away. Of equally good ones that is
    the last: a wide operation frees those behind it, which follow its result."""
    full_errors, low = _whole_errors(spec, plan, runner, measure), _only(plan, _low_modules(plan))
    if not full_errors:
        return None
    full_errors = _telling(full_errors)

    def removed(groups: Sequence[Group]) -> dict[Group, float]:
        wide = {group: tuple(OpFormat(fqn, op, "float32") for op in group) for group in groups}
        plans = {group: replace(low, ops=(*low.ops, *more)) for group, more in wide.items()}
        return _removed(_shares(spec, runner, measure, full_errors, plans))

    found = _search(ops, len(full_errors), removed, lambda group: (-ops.index(group[0]),))
    return found[0][0] if found and found[0][1] >= _EXPLAINED else None


def _telling(full_errors: Mapping[Steps, float]) -> dict[Steps, float]:
    """The steps with most of the error: elsewhere, as in another branch, shares are ratios of tiny numbers."""
    least = _TELLING * fmean(map(abs, full_errors.values()))
    return {steps: error for steps, error in full_errors.items() if abs(error) >= least}


def _removed(left: Mapping[Group, float]) -> dict[Group, float]:
    return {group: max(0.0, 1 - share) for group, share in left.items()}


def _shares(
    spec: RunSpec,
    runner: Runner,
    measure: Measure,
    full_errors: Mapping[Steps, float],
    plans: Mapping[Group, Plan],
) -> dict[Group, float]:
    """The share of each group's plan in the whole plan's error in the same steps; each run tries as many plans as it
    has steps for them."""
    found: dict[Group, float] = {}
    groups, steps = list(plans), list(full_errors)
    for start in range(0, len(groups), len(steps)):
        tried = dict(zip(steps, groups[start:], strict=False))
        errors = _errors(spec, runner, {step: plans[group] for step, group in tried.items()}, measure)
        found |= {tried[step]: _share(error, full_errors[step]) for step, error in errors.items()}
    return found


def _share(error: float, whole: float) -> float:
    """The share of a group in the whole error of a step; 1 for an overflow."""
    if math.isinf(error):
        return 1.0
    return error / whole if whole else 0.0


def _search(
    modules: Sequence[str],
    parts: int,
    measure: Callable[[Sequence[Group]], dict[Group, float]],
    first: Rank,
) -> list[tuple[str, float]]:
    """Each pair of saved steps tries one group of modules; the worst groups are split until single modules are left or
    the evaluations are used up."""
    groups, evaluations = _split(modules, parts), 0
    while groups and evaluations < MAX_EVALUATIONS:
        errors = measure(groups)
        evaluations += len(groups)
        worst = _largest(groups, errors, first)
        if all(len(group) == 1 for group in worst):
            return [(group[0], errors[group]) for group in worst]
        groups = [part for group in worst for part in _split(group, max(2, parts // len(worst)))]
    return []


def _low_modules(plan: Plan) -> tuple[str, ...]:
    return tuple(fqn for fqn, name in plan.modules.items() if name != "float32")


def _split(modules: Sequence[str], parts: int) -> list[Group]:
    parts = max(1, min(parts, len(modules)))
    size = -(-len(modules) // parts)
    return [tuple(modules[i : i + size]) for i in range(0, len(modules), size)] if modules else []


def _in_pairs(steps: Collection[int]) -> list[Steps]:
    """Pairs of steps that try one plan: in a GAN one step of each optimizer, where the second may use results of the
    first."""
    pairs: dict[int, list[int]] = {}
    for step in sorted(steps):
        pairs.setdefault(step // 2, []).append(step)
    most = max(map(len, pairs.values()), default=0)
    return [tuple(pair) for pair in pairs.values() if len(pair) == most]


def _errors(spec: RunSpec, runner: Runner, plans: Mapping[Steps, Plan], measure: Measure) -> dict[Steps, float]:
    """The error of each pair of steps under its plan."""
    compare = {step: (str(steps[0]), plan) for steps, plan in plans.items() for step in steps}
    return measure(runner(replace(spec, label="bisect", probe_save=frozenset(), probe_compare=compare)), plans)


def _only(plan: Plan, group: Collection[str]) -> Plan:
    """The plan with every module outside the group in float32, and a loss scale that doesn't overflow."""
    scale = plan.loss_scale
    if scale.init_scale is not None:
        scale = LossScale("static", scale.init_scale / PROBE_HEADROOM)
    modules = {fqn: name if fqn in group else "float32" for fqn, name in plan.modules.items()}
    ops = tuple(op for op in plan.ops if op.fqn in group)
    return replace(plan, modules=modules, ops=ops, loss_scale=scale)


def _largest(groups: Sequence[Group], shares: Mapping[Group, float], first: Rank) -> list[Group]:
    """The fewest groups that cause nine tenths of the error, ordered by `first` where their shares are within a
    twentieth. Shares may add up to more than one: in a chain of modules each may be the one to repair."""
    known = {group: shares[group] for group in groups if group in shares}
    total, kept = min(1.0, sum(known.values())), list[Group]()
    left = {group: share for group, share in known.items() if share > 0}
    while left and sum(shares[group] for group in kept) < _SHARE * total:
        least = max(left.values()) - _TIE
        kept.append(min((g for g in left if left[g] >= least), key=lambda g: (first(g), -left[g])))
        del left[kept[-1]]
    return kept
