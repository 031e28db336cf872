"""Finds the modules that cause an error of the gradient or the loss, by running groups of them in low precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from precaudit.model import LossScale, OpFormat, Plan
from precaudit.planning.budget import gradient_error
from precaudit.profiling.audit import PROBE_HEADROOM, Runner
from precaudit.running.job import SEARCH, RunResult, RunSpec

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


@dataclass(eq=False)
class Search:
    """Replays of a run under variants of `plan` in its probed steps, each made once and no further than those steps.

    `spec` is a replay of a run whose gradients were saved at its `probe_save` steps.
    """

    spec: RunSpec
    plan: Plan
    runner: Runner
    _tried: list[Mapping[int, tuple[str, Plan]]] = field(default_factory=list)
    _results: list[RunResult] = field(default_factory=list)

    def errors(self, trials: Sequence[Mapping[Steps, Plan]], measure: Measure) -> list[dict[Steps, float]]:
        """For each trial, which gives pairs of steps their plans, the errors in these pairs."""
        wanted = [{s: (str(steps[0]), plan) for steps, plan in each.items() for s in steps} for each in trials]
        new = [compare for compare in wanted if compare not in self._tried]
        self._results += self.runner.many([self._replay(compare) for compare in new])
        self._tried += new
        return list(map(measure, (self._results[self._tried.index(compare)] for compare in wanted), trials))

    def _replay(self, compare: Mapping[int, tuple[str, Plan]]) -> RunSpec:
        job = replace(self.spec.job, steps=max(compare) + 1)
        return replace(self.spec, job=job, label=SEARCH, probe_save=frozenset(), probe_compare=compare)

    def whole_errors(self, measure: Measure) -> dict[Steps, float]:
        """The error of the whole plan in each pair of saved steps; {} where there are none."""
        steps, plan = _in_pairs(self.spec.probe_save), self.plan
        if not (steps and plan.low_modules):
            return {}
        return self.errors([dict.fromkeys(steps, _only(plan, plan.low_modules))], measure)[0]

    def shares(self, measure: Measure, whole: Mapping[Steps, float], plans: Mapping[Group, Plan]) -> dict[Group, float]:
        """The share of each group's plan in the whole plan's error in the same steps; each run tries as many plans as
        it has steps for them."""
        groups, steps = list(plans), list(whole)
        tried = [dict(zip(steps, groups[i:], strict=False)) for i in range(0, len(groups), len(steps))]
        errors = self.errors([{step: plans[group] for step, group in each.items()} for each in tried], measure)
        found: dict[Group, float] = {}
        for each, made in zip(tried, errors, strict=True):
            found |= {each[step]: _share(error, whole[step]) for step, error in made.items()}
        return found


def whole_error(search: Search, measure: Measure) -> float:
    """The error of the whole plan, averaged over the saved steps; 0 where there are none."""
    errors = search.whole_errors(measure)
    return fmean(errors.values()) if errors else 0.0


def contributions(
    search: Search, products: Collection[str] = (), measure: Measure = of_gradients
) -> list[Contribution]:
    """The modules that cause most of the error, largest first. Of equally good explanations, modules without products
    (`products` names the others) are preferred, as float32 costs nothing there.

    Usually, the error that a module adds when it alone is low explains the plan's. Where that is less than half of the
    plan's error, modules amplify the rounding of others (a norm by hand squares a half result), and the error that
    disappears when a module is wide counts. Of equally good ones that is the last: a wide module frees those behind it
    too, which follow its output. Errors are compared with the whole plan's in the same steps, since batches differ and
    may not reach the module.
    """
    plan, products = search.plan, frozenset(products)
    everything = plan.low_modules
    typical = whole_error(search, measure)
    if typical == 0:
        return []
    full_errors = _telling(search.whole_errors(measure))
    shares = partial(search.shares, measure, full_errors)

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


def culprit(search: Search, fqn: str, ops: Sequence[str], measure: Measure = of_gradients) -> str | None:
    """The operation of a module that, run in float32, takes most of the plan's error away. Of equally good ones that is
    the last: a wide operation frees those behind it, which follow its result."""
    full_errors, low = search.whole_errors(measure), _only(search.plan, search.plan.low_modules)
    if not full_errors:
        return None
    full_errors = _telling(full_errors)

    def removed(groups: Sequence[Group]) -> dict[Group, float]:
        wide = {group: tuple(OpFormat(fqn, op, "float32") for op in group) for group in groups}
        plans = {group: replace(low, ops=(*low.ops, *more)) for group, more in wide.items()}
        return _removed(search.shares(measure, full_errors, plans))

    found = _search(ops, len(full_errors), removed, lambda group: (-ops.index(group[0]),))
    return found[0][0] if found and found[0][1] >= _EXPLAINED else None


def _telling(full_errors: Mapping[Steps, float]) -> dict[Steps, float]:
    """The steps with most of the error: elsewhere, as in another branch, shares are ratios of tiny numbers."""
    least = _TELLING * fmean(map(abs, full_errors.values()))
    return {steps: error for steps, error in full_errors.items() if abs(error) >= least}


def _removed(left: Mapping[Group, float]) -> dict[Group, float]:
    return {group: max(0.0, 1 - share) for group, share in left.items()}


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
