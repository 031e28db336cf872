"""Looks up the format of a module, and of an operation in it, in a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from precaudit.instrument.names import ModuleName
from precaudit.model import Plan
from precaudit.planning.fitting import fit_prefix


@dataclass(frozen=True)
class ScopeFormat:
    """The format of a module's own operations, with exceptions by operation name. `by_row` is how float8 is scaled."""

    default: str
    ops: Mapping[str, str] = field(default_factory=dict)
    by_row: bool = False

    def of(self, op: str) -> str:
        return self.ops.get(op, self.default)


FLOAT32 = ScopeFormat("float32")


class PlanLookup:
    """Formats by module name. In a plan for several models, names are prefixed by the model's (`modules_of`). A module
    that the plan doesn't have takes the format of its nearest ancestor, else the default."""

    def __init__(self, plan: Plan, modules_of: Callable[[str], Collection[str]]) -> None:
        self.plan = plan
        self._modules_of = modules_of
        self._prefixes: dict[str, str] = {}
        self._known: dict[ModuleName, ScopeFormat] = {}
        self._exceptions: dict[str, dict[str, str]] = {}
        for exception in plan.ops:
            self._exceptions.setdefault(exception.fqn, {})[exception.op] = exception.format

    def of(self, name: ModuleName) -> ScopeFormat:
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: ModuleName) -> ScopeFormat:
        if name.model not in self._prefixes:
            self._prefixes[name.model] = fit_prefix(self.plan, self._modules_of(name.model), name.model)
        qualified = f"{self._prefixes[name.model]}.{name.fqn}".strip(".")
        ops, by_row = self._exceptions.get(qualified, {}), self.plan.float8_scaling == "row"
        for ancestor in (*_ancestors(qualified), ""):
            if ancestor in self.plan.modules:
                return ScopeFormat(self.plan.modules[ancestor], ops, by_row)
        return ScopeFormat(self.plan.default, ops, by_row)


def _ancestors(fqn: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`: the name and its ancestors, without the root."""
    while fqn:
        yield fqn
        fqn = fqn.rpartition(".")[0]
