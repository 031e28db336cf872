"""The models in a check, each with its part of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precaudit.checking.records import Observed
from precaudit.model import Plan
from precaudit.model.fitting import fit_names, part_of
from precaudit.tracing.records import Trace, stands_alone


@dataclass(frozen=True)
class ModelView:
    """One model by its own names. `plan` is its part of the plan, `names` the plan's names for its modules.

    `types` has every module, `computing` those that compute in their own forward (leaves, and containers that ran
    operations between their children), `own_work` the leaves and modules with parameters of their own.
    """

    model: str
    plan: Plan
    names: Mapping[str, str]
    types: Mapping[str, str]
    computing: tuple[str, ...]
    own_work: frozenset[str]
    alone: bool

    @property
    def called(self) -> str:
        return "this model" if self.alone else f"the model {self.model}"

    def shown(self, fqn: str) -> str:
        """The name in the trace, the report and the findings, prefixed by the model's where a plan is for several."""
        return fqn if self.alone else f"{self.model}.{fqn}".rstrip(".")


def view_models(plan: Plan, observed: Observed, trace: Trace) -> dict[str, ModelView]:
    """All models that were called, the trained ones first."""
    names = dict.fromkeys([*trace.models, *(facts.model for facts in observed.modules)])
    return {name: _view(name, plan, observed, trace) for name in names}


def the_planned(views: Mapping[str, ModelView], trace: Trace) -> list[ModelView]:
    """The models that the plan is for: trained ones, else frozen ones that ran with them, else all."""
    return [view for name, view in views.items() if name in trace.models or not trace.models]


def _view(name: str, plan: Plan, observed: Observed, trace: Trace) -> ModelView:
    facts = [facts for facts in observed.modules if facts.model == name]
    alone = stands_alone(name, trace.models)
    ran = {_own_name(layer.fqn, name, alone) for layer in trace.layers if layer.model == name}
    leaves = [each.fqn for each in facts if each.leaf]
    mapping = fit_names(plan, {each.fqn for each in facts}, name)
    return ModelView(
        model=name,
        plan=part_of(plan, mapping),
        names=mapping,
        types={each.fqn: each.type for each in facts},
        computing=tuple(dict.fromkeys([*leaves, *(each.fqn for each in facts if each.fqn in ran)])),
        own_work=frozenset(each.fqn for each in facts if each.leaf or each.has_parameters),
        alone=alone,
    )


def _own_name(shown: str, model: str, alone: bool) -> str:
    return shown if alone else shown.removeprefix(model).removeprefix(".")


def planned_formats(views: Mapping[str, ModelView]) -> dict[str, tuple[Plan, str]]:
    """By the trace's name of a module: the plan for its model, and its name in that plan."""
    return {view.shown(fqn): (view.plan, fqn) for view in views.values() for fqn in view.types}
