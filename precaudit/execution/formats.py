"""What native and emulated execution share: when a plan is active, and the formats of modules and operations in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from precaudit.instrument.functions import IN_FLOAT32
from precaudit.instrument.names import ModuleName
from precaudit.instrument.scopes import PLANNED, Frame, ScopeListener, Scopes
from precaudit.model import Plan
from precaudit.model.fitting import fit_prefix, format_of


@dataclass(frozen=True)
class ScopeFormat:
    """The format of a module's own operations, with exceptions by operation name. `by_row` is how float8 is scaled."""

    default: str
    ops: Mapping[str, str] = field(default_factory=dict)
    by_row: bool = False

    def of(self, op: str) -> str:
        return self.ops.get(op, self.default)


FLOAT32 = ScopeFormat("float32")
WIDE = ("float32", "tf32")
"""Formats whose values are float32."""


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
        ops = self._exceptions.get(qualified, {})
        return ScopeFormat(format_of(self.plan, qualified), ops, self.plan.float8_scaling == "row")


def every_model(module: nn.Module) -> bool:
    """The default for `covers`: a plan applies to every model."""
    return True


def no_disabled_region() -> bool:
    """The default for `in_disabled_region`: autocast is never disabled."""
    return False


class PlanExecution(ScopeListener):
    """Runs models' forward passes under a plan.

    `covers` says whether the plan applies to a model, unlike a loss without weights that holds one in a list;
    `in_disabled_region`, whether the script has opened an autocast region with `enabled=False`.
    """

    def __init__(
        self,
        plan: Plan,
        scopes: Scopes,
        covers: Callable[[nn.Module], bool] = every_model,
        in_disabled_region: Callable[[], bool] = no_disabled_region,
    ) -> None:
        self._scopes = scopes
        self._lookup = PlanLookup(plan, scopes.modules_of)
        self._covers, self._in_disabled_region = covers, in_disabled_region

    def _begins(self, frame: Frame) -> bool:
        """Whether the plan becomes active at this frame: at the outermost covered model (perhaps inside a loss that
        isn't covered), and where checkpointing recomputes a part of one."""
        planned = bool(frame.root.data.get(PLANNED))
        begins = self._covers(frame.module) if not planned else frame.is_outermost
        frame.root.data[PLANNED] = planned or begins
        return begins

    def _format_in(self, frame: Frame) -> ScopeFormat:
        """The format of a module that the plan covers."""
        scope = self._lookup.of(frame.name)
        frame.data[IN_FLOAT32] = scope.default in WIDE and self._lookup.plan.is_low_precision
        return scope
