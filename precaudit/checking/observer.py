"""Runs in the script's process: keeps the last calls of every model, and repeats them under the plan after the run.

The trained weights never leave that process: only sums, counts and messages do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from precaudit.checking import inputs
from precaudit.checking.records import Deployment, HardInput, ModuleFacts, Observed, ObserverSpec
from precaudit.checking.repeating import Calls, Repeater, Seen, compare, hard_calls, safe_exponent, said, try_hard
from precaudit.instrument.names import ModuleNames, has_parameters, is_leaf
from precaudit.instrument.scopes import Frame, ModuleScopes, ScopeListener
from precaudit.model import Execution, Plan
from precaudit.model.fitting import fit_names, part_of
from precaudit.running.end_state import is_called


class Observer(ScopeListener):
    """Keeps the calls of models with parameters (losses have none)."""

    def __init__(self, wanted: ObserverSpec, scopes: ModuleScopes, in_disabled_region: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._scopes = scopes
        self._in_disabled_region = in_disabled_region
        self._calls: dict[str, Calls] = {}
        self._modules: dict[str, tuple[ModuleFacts, ...]] = {}
        self._unanswered: dict[str, str] = {}
        self._count = 0

    def left(self, frame: Frame, output: Any) -> None:
        if is_called(frame) and output is not None and has_parameters(frame.module):
            self._keep(frame)

    def _keep(self, frame: Frame) -> None:
        name = frame.name
        if name.model not in self._modules:
            model = self._scopes.names.model(name.model) or frame.module
            self._modules[name.model] = tuple(_facts(self._scopes.names, model))
        key = name.qualified
        calls = self._calls.get(key)
        if calls is None or calls.module is not frame.module:
            calls = self._calls[key] = Calls(frame.module, name.model, deque(maxlen=self._wanted.batches))
        self._count += 1
        try:
            calls.add(inputs.copied(frame.call))
        except Exception as error:  # a container that can't be copied must not stop the script
            self._unanswered[key] = said(error)

    def observe(self) -> Observed:
        """Repeat every kept call under every deployment."""
        seen = Seen()
        repeater = Repeater(self._scopes, self._in_disabled_region, self._execution())
        for key in self._calls:
            for deployment in self._wanted.deployments:
                try:
                    self._observe_model(seen, key, repeater, deployment)
                except Exception as error:
                    self._unanswered[key] = said(error)
        return Observed(
            modules=tuple(dict.fromkeys(fact for facts in self._modules.values() for fact in facts)),
            outputs=tuple(seen.outputs.values()),
            hard_inputs=tuple(seen.hard_inputs),
            raised=tuple(seen.raised),
            unanswered={**seen.unanswered, **self._unanswered},
            execution=repeater.execution,
            calls=self._count,
        )

    def _observe_model(self, seen: Seen, key: str, repeater: Repeater, deployment: Deployment) -> None:
        calls = self._calls[key]
        plan = self._own_plan(calls.model, deployment.plan)
        reference, planned = repeater.float32(calls.module), repeater.under(calls.module, plan)
        compare(seen, key, calls, reference, planned, deployment)
        for kind, call in hard_calls(calls, deployment.plan):
            hard = try_hard(HardInput(deployment.format, key, kind), call, reference, planned)
            if kind == "large" and hard.nonfinite:
                hard = replace(hard, safe_exponent=safe_exponent(calls.last[-1], reference, planned))
            seen.hard_inputs.append(hard)

    def _own_plan(self, model: str, plan: Plan) -> Plan:
        own = {fact.fqn for fact in self._modules[model]}
        return part_of(plan, fit_names(plan, own, model))

    def _execution(self) -> Execution:
        parameters = (p for calls in self._calls.values() for p in calls.module.parameters())
        on_cuda = any(p.device.type == "cuda" for p in parameters)
        return "native" if on_cuda and self._wanted.execution != "emulated" else "emulated"


def _facts(names: ModuleNames, model: nn.Module) -> Iterator[ModuleFacts]:
    for module in model.modules():
        name = names.of(module)
        yield ModuleFacts(
            model=name.model,
            fqn=name.fqn,
            type=type(module).__name__,
            leaf=is_leaf(module),
            has_parameters=next(module.parameters(recurse=False), None) is not None,
        )
