"""`precaudit.apply`: somebody's own training under a plan, three lines of their code."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

from precaudit.errors import PrecauditError
from precaudit.execution.emulated import Emulator
from precaudit.execution.native import NativePrecision
from precaudit.instrument.names import ModuleName
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.model import Plan
from precaudit.planning.fitting import fit_names, part_of


class Applied:
    """A plan in force on a model; `remove()` or leaving a `with` block ends it."""

    def __init__(self, model: nn.Module, plan: Plan, native: bool) -> None:
        self.plan = plan
        self._names = {module: ModuleName("", fqn) for fqn, module in model.named_modules()}
        self._frames: list[Frame] = []
        self._listener: ScopeListener = (NativePrecision if native else Emulator)(plan, self)
        self._handles: list[RemovableHandle] = []
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    @property
    def current(self) -> Frame | None:
        return self._frames[-1] if self._frames else None

    def _enter(self, module: nn.Module, args: Any) -> None:
        frame = Frame(module, self._names[module], self._frames[-1].root if self._frames else None)
        self._frames.append(frame)
        self._listener.entered(frame)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        while self._frames:
            frame = self._frames.pop()
            own = frame.module is module
            result = self._listener.left(frame, output if own else None)
            if own:
                return result
        return None

    def remove(self) -> None:
        """Take every hook off the model, and end forwards that an interrupt cut short; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._frames:
            self._listener.left(self._frames.pop(), None)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()


def apply(
    model: nn.Module, plan: Plan | str | os.PathLike[str], *, execution: Literal["auto", "native", "emulated"] = "auto"
) -> Applied:
    """Make `model`'s own forward run under `plan` (a Plan or the path of a plan.json).

    Weights stay float32; outputs come back in float32. Native execution is torch.autocast on the model's
    device, emulated is CUDA autocast's rounding on any device; `auto` is native on CUDA, emulated elsewhere.
    Raises PrecauditError when the plan was made for another model.
    """
    from precaudit.api import load_plan

    resolved = plan if isinstance(plan, Plan) else load_plan(plan)
    if any(isinstance(hook, Applied) for hook in _owners(model)):
        raise PrecauditError("a plan is applied to this model already; call .remove() on its handle first")
    fitted = fit_plan(model, resolved)
    first = next(model.parameters(), None)
    on_cuda = first is not None and first.device.type == "cuda"
    return Applied(model, fitted, native=execution == "native" or (execution == "auto" and on_cuda))


def _owners(model: nn.Module) -> list[object]:
    return [getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values()]


def fit_plan(model: nn.Module, plan: Plan) -> Plan:
    """The part of a plan that is about `model`, by the model's own names; PrecauditError where it names others."""
    own = {fqn for fqn, _ in model.named_modules()}
    names = fit_names(plan, own)
    unknown = sorted(fqn for fqn in names.values() if fqn not in own)
    if plan.modules and (unknown or not names):
        listed = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise PrecauditError(
            f"the plan doesn't fit this model: it has no module {listed or 'of the plan'}. "
            "Make a new plan with `precaudit profile`, or pass the model that the plan was made for"
        )
    return part_of(plan, names)
