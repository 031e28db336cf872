"""Matches a plan's module names to a model's own, whatever the model is called; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from precaudit.model.plan import Plan


def fit_names(plan: Plan, own: Collection[str], model: str = "") -> dict[str, str]:
    """Maps the plan's names of one model's modules to the model's own names (`own`).

    In a plan for several models each module's name is prefixed by its model's: the model is found by its name if that
    is known and has the modules, else by its modules.
    """
    return _stripped(plan, fit_prefix(plan, own, model))


def fit_prefix(plan: Plan, own: Collection[str], model: str) -> str:
    """The prefix that the plan gives to the names of one model's modules (`own`): "", the model's name, or the path of
    another model with the same modules. Of several candidates the one with the most exceptions is chosen: a copy that
    is never trained has none."""
    known = max(("", model), key=lambda prefix: _matches(plan, own, prefix))
    if _matches(plan, own, known):
        return known
    return max(alike(plan, own), key=lambda prefix: _exceptions(plan, prefix))


def alike(plan: Plan, own: Collection[str]) -> list[str]:
    """The prefixes of all models in the plan that share the most modules with `own`."""
    counts = {prefix: _matches(plan, own, prefix) for prefix in ("", *_prefixes(plan, own))}
    return [prefix for prefix, count in counts.items() if count == max(counts.values())]


def _matches(plan: Plan, own: Collection[str], prefix: str) -> int:
    """How many of the names exist under the prefix. The root's empty name counts only where there is no other."""
    shared = set(_stripped(plan, prefix).values()).intersection(own)
    return len(shared - {""}) or int(shared == set(own))


def stands_for(part: Plan, other: Plan) -> bool:
    """Whether every module and operation of `other` has the same format in `part`, or float32."""
    wide = (format_of(part, fqn) in (name, "float32") for fqn, name in other.modules.items())
    return all(wide) and all(format_of(part, op.fqn, op.op) in (op.format, "float32") for op in other.ops)


def _prefixes(plan: Plan, own: Collection[str]) -> list[str]:
    """Candidates for prefixes: the first component of each name, and the paths in front of the deepest own name."""
    deepest = max(own, key=lambda fqn: fqn.count("."), default="")
    paths = {fqn.removesuffix(f".{deepest}") for fqn in plan.modules if deepest and fqn.endswith(f".{deepest}")}
    return sorted({fqn.partition(".")[0] for fqn in plan.modules} | paths)


def _exceptions(plan: Plan, prefix: str) -> int:
    modules = sum(name != plan.default for fqn, name in plan.modules.items() if is_within(fqn, prefix))
    return modules + sum(is_within(op.fqn, prefix) for op in plan.ops)


def is_within(fqn: str, container: str) -> bool:
    """Whether `fqn` is the container or a module inside it. The root has the empty name and contains all."""
    return not container or fqn == container or fqn.startswith(f"{container}.")


def _stripped(plan: Plan, prefix: str) -> dict[str, str]:
    """Plan names to names inside the model called `prefix`; every name where there is no prefix. Those of exceptions
    are names too: a container may have one and no format of its own."""
    named = dict.fromkeys([*plan.modules, *(op.fqn for op in plan.ops)])
    return {fqn: fqn.removeprefix(prefix).removeprefix(".") for fqn in named if is_within(fqn, prefix)}


def parts(plan: Plan, own: Collection[str]) -> dict[str, Plan]:
    """The parts of the plan for all models that may be the one with these modules, by prefix."""
    return {prefix: part_of(plan, _stripped(plan, prefix)) for prefix in alike(plan, own)}


def part_of(plan: Plan, names: Mapping[str, str]) -> Plan:
    """The plan for the modules in `names` only, renamed; `because` is that of the whole plan."""
    return replace(
        plan,
        modules={names[fqn]: format_name for fqn, format_name in plan.modules.items() if fqn in names},
        ops=tuple(replace(op, fqn=names[op.fqn]) for op in plan.ops if op.fqn in names),
        types={names[fqn]: type_name for fqn, type_name in plan.types.items() if fqn in names},
    )


def format_of(plan: Plan, fqn: str, op: str | None = None) -> str:
    """The format of a module, or of one operation in it: its own, else its nearest ancestor's, else the default."""
    exceptions = {(exception.fqn, exception.op): exception.format for exception in plan.ops}
    if (own := exceptions.get((fqn, op or ""))) is not None:
        return own
    while fqn not in plan.modules:
        if not fqn:
            return plan.default
        fqn = fqn.rpartition(".")[0]
    return plan.modules[fqn]
