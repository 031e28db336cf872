"""Which modules make the gradient wrong: each group of them alone in its planned format, against float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from precaudit.model import LossScale, Plan
from precaudit.planning.budget import gradient_error
from precaudit.profiling.audit import PROBE_HEADROOM, Runner
from precaudit.running.job import RunSpec

MAX_EVALUATIONS = 64
_SHARE = 0.9
_EXPLAINED = 0.5
Group = tuple[str, ...]


@dataclass(frozen=True)
class Contribution:
    """A module's own share of the gradient error: |delta|^2 / |g|^2 when only it runs low."""

    fqn: str
    error: float


def contributions(spec: RunSpec, plan: Plan, runner: Runner) -> list[Contribution]:
    """The modules that make up most of the error, largest first.

    `spec` is a replay of a run whose gradients were saved at its `probe_save` steps. What a module adds when it alone
    is low explains most plans. Where that is less than half of the plan's error, modules err on what others hand
    them (a norm by hand squares a half result), and what counts is what goes away when a module is wide.
    """
    steps, everything = sorted(spec.probe_save), _low_modules(plan)
    if not steps or not everything:
        return []

    def alone(groups: Sequence[Group]) -> dict[Group, float]:
        return _errors(spec, runner, groups, steps, lambda group: _only(plan, group))

    def removed(groups: Sequence[Group]) -> dict[Group, float]:
        left = _errors(spec, runner, groups, steps, lambda group: _only(plan, set(everything) - set(group)))
        return {group: max(0.0, whole - error) for group, error in left.items()}

    found = _search(everything, len(steps), alone)
    whole = alone([everything])[everything]
    if sum(item.error for item in found) >= _EXPLAINED * whole:
        return found
    return _search(everything, len(steps), removed)


def _search(
    modules: Sequence[str], parts: int, measure: Callable[[Sequence[Group]], dict[Group, float]]
) -> list[Contribution]:
    """Every saved step tries one group of modules; the worst groups are split until single modules are left or the
    evaluations are used up."""
    groups, evaluations = _split(modules, parts), 0
    while groups and evaluations < MAX_EVALUATIONS:
        errors = measure(groups)
        evaluations += len(groups)
        worst = _largest(groups, errors)
        if all(len(group) == 1 for group in worst):
            return [Contribution(group[0], errors[group]) for group in worst]
        groups = [part for group in worst for part in _split(group, max(1, parts // len(worst)))]
    return []


def _low_modules(plan: Plan) -> tuple[str, ...]:
    return tuple(fqn for fqn, name in plan.modules.items() if name != "float32")


def _split(modules: Sequence[str], parts: int) -> list[Group]:
    parts = max(1, min(parts, len(modules)))
    size = -(-len(modules) // parts)
    return [tuple(modules[i : i + size]) for i in range(0, len(modules), size)] if modules else []


def _errors(
    spec: RunSpec, runner: Runner, groups: Sequence[Group], steps: Sequence[int], derived: Callable[[Group], Plan]
) -> dict[Group, float]:
    compare = {step: (str(i), derived(group)) for i, (step, group) in enumerate(zip(steps, groups, strict=False))}
    replay = runner(replace(spec, label="bisect", probe_save=frozenset(), probe_compare=compare))
    errors = {}
    for i, group in enumerate(groups[: len(steps)]):
        error = gradient_error(str(i), replay.differences)
        errors[group] = 1 / error.snr if error and error.snr > 0 else float("inf") if error else 0.0
    return errors


def _only(plan: Plan, group: Collection[str]) -> Plan:
    """The plan with every module outside the group in float32, and a loss scale that doesn't overflow."""
    scale = plan.loss_scale
    if scale.init_scale is not None:
        scale = LossScale("static", scale.init_scale / PROBE_HEADROOM)
    modules = {fqn: name if fqn in group else "float32" for fqn, name in plan.modules.items()}
    ops = tuple(op for op in plan.ops if op.fqn in group)
    return replace(plan, default="float32", modules=modules, ops=ops, loss_scale=scale)


def _largest(groups: Sequence[Group], errors: Mapping[Group, float]) -> list[Group]:
    """The fewest groups that make up nine tenths of the error."""
    kept: list[Group] = []
    ranked = sorted((group for group in groups if group in errors), key=lambda group: -errors[group])
    total, seen = sum(errors.values()), 0.0
    for group in ranked:
        if kept and (seen >= _SHARE * total or errors[group] == 0):
            break
        kept.append(group)
        seen += errors[group]
    return kept if total > 0 else []
