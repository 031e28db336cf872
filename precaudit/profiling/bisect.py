"""Which modules make the gradient wrong: each group of them alone in its planned format, against float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from precaudit.model import LossScale, Plan
from precaudit.planning.budget import gradient_error
from precaudit.profiling.audit import PROBE_HEADROOM, Runner
from precaudit.running.job import RunSpec

MAX_EVALUATIONS = 64
_SHARE = 0.9


@dataclass(frozen=True)
class Contribution:
    """A module's own share of the gradient error: |delta|^2 / |g|^2 when only it runs low."""

    fqn: str
    error: float


def contributions(spec: RunSpec, plan: Plan, runner: Runner) -> list[Contribution]:
    """The modules that make up most of the error, largest first.

    `spec` is a replay of a run whose gradients were saved at its `probe_save` steps. Every saved step tries one
    group of modules; the worst groups are split until single modules are left or the evaluations are used up.
    """
    steps = sorted(spec.probe_save)
    groups = _split(_low_modules(plan), len(steps))
    evaluations = 0
    while groups and evaluations < MAX_EVALUATIONS:
        errors = _errors(spec, plan, runner, groups, steps)
        evaluations += len(groups)
        worst = _largest(groups, errors)
        if all(len(group) == 1 for group in worst):
            return [Contribution(group[0], errors[group]) for group in worst]
        groups = [part for group in worst for part in _split(group, max(1, len(steps) // len(worst)))]
    return []


def _low_modules(plan: Plan) -> tuple[str, ...]:
    return tuple(fqn for fqn, name in plan.modules.items() if name != "float32")


def _split(modules: Sequence[str], parts: int) -> list[tuple[str, ...]]:
    parts = max(1, min(parts, len(modules)))
    size = -(-len(modules) // parts)
    return [tuple(modules[i : i + size]) for i in range(0, len(modules), size)] if modules else []


def _errors(
    spec: RunSpec, plan: Plan, runner: Runner, groups: Sequence[tuple[str, ...]], steps: Sequence[int]
) -> dict[tuple[str, ...], float]:
    compare = {step: (str(i), _only(plan, group)) for i, (step, group) in enumerate(zip(steps, groups, strict=False))}
    replay = runner(replace(spec, label="bisect", probe_save=frozenset(), probe_compare=compare))
    errors = {}
    for i, group in enumerate(groups[: len(steps)]):
        error = gradient_error(str(i), replay.differences)
        errors[group] = 1 / error.snr if error and error.snr > 0 else float("inf") if error else 0.0
    return errors


def _only(plan: Plan, group: Sequence[str]) -> Plan:
    """The plan with every module outside the group in float32, and a loss scale that doesn't overflow."""
    scale = plan.loss_scale
    if scale.init_scale is not None:
        scale = LossScale("static", scale.init_scale / PROBE_HEADROOM)
    modules = {fqn: name if fqn in group else "float32" for fqn, name in plan.modules.items()}
    ops = tuple(op for op in plan.ops if op.fqn in group)
    return replace(plan, default="float32", modules=modules, ops=ops, loss_scale=scale)


def _largest(groups: Sequence[tuple[str, ...]], errors: Mapping[tuple[str, ...], float]) -> list[tuple[str, ...]]:
    """The fewest groups that make up nine tenths of the error."""
    kept: list[tuple[str, ...]] = []
    ranked = sorted((group for group in groups if group in errors), key=lambda group: -errors[group])
    total, seen = sum(errors.values()), 0.0
    for group in ranked:
        if kept and (seen >= _SHARE * total or errors[group] == 0):
            break
        kept.append(group)
        seen += errors[group]
    return kept if total > 0 else []
