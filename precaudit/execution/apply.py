"""`precaudit.apply`: a plan in the user's own training loop."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from precaudit.errors import PrecauditError, require
from precaudit.execution.emulated import Emulator, autocast_asked
from precaudit.execution.fitness import doubts, fit_plan, refuse_unplannable
from precaudit.execution.formats import PlanLookup, ScopeFormat
from precaudit.execution.native import NativePrecision, backward_products
from precaudit.execution.products import tf32
from precaudit.instrument.functions import widening
from precaudit.instrument.names import ModuleName, fqns_of
from precaudit.instrument.patches import Shared, item_set_to
from precaudit.instrument.scopes import Frame, Scopes, checkpointed
from precaudit.model import EXECUTIONS, Plan


@dataclass(frozen=True)
class _Place:
    """A module's position in the model. torch.compile's guards compare only `number` and `kind` (of its scope)."""

    number: int
    kind: int
    name: ModuleName


class Applied(Scopes):
    """A plan that is active on a model until `remove()` or the end of a `with` block.

    Modules in the same format as their surroundings need no hooks, so that torch.compile's graph breaks only where the
    plan changes format.
    """

    def __init__(self, model: nn.Module, plan: Plan, native: bool | None) -> None:
        """`native` is None where each call decides by the model's current device, or by the last one's for a model
        without weights."""
        super().__init__()
        self.plan = plan
        self._fqns = tuple(fqns_of(model).values())
        self._asked = native
        self._native: bool | None = None
        self._handles: list[RemovableHandle] = []
        self._products: tf32 | None = None
        self._choose(model)
        try:
            self._hook(model)
        except BaseException:
            self.remove()
            raise

    def _hook(self, model: nn.Module) -> None:
        lookup, kinds = PlanLookup(self.plan, self.modules_of), list[ScopeFormat]()
        for number, (module, fqn) in enumerate(fqns_of(model).items()):
            name = ModuleName("", fqn)
            place = _Place(number, _index(kinds, lookup.of(name)), name)
            # Before existing hooks, as in a profile, so that their operations run in the verified formats.
            enter, leave = partial(self._enter, place), partial(self._leave, place)
            self._handles.append(module.register_forward_pre_hook(enter, prepend=True))
            self._handles.append(module.register_forward_hook(leave, prepend=True, always_call=True))

    def _choose(self, module: nn.Module) -> None:
        on_cuda = _on_cuda(module)
        native = self._asked if self._asked is not None else bool(self._native) if on_cuda is None else on_cuda
        with _lock:
            if native is self._native:
                return
            self._native = native
            self.listeners = [
                (NativePrecision if native else Emulator)(self.plan, self, in_disabled_region=self._in_disabled_region)
            ]
            self._leave_products()
            if native:
                self._products = backward_products(self.plan)
                self._products.__enter__()

    def _leave_products(self) -> None:
        if self._products:
            self._products.__exit__()
            self._products = None

    def modules_of(self, model: str) -> Collection[str]:
        return self._fqns

    def _is_inside(self, place: _Place) -> bool:
        return any(frame.data["place"].number == place.number for frame in self._stack.frames)

    def _enter(self, place: _Place, module: nn.Module, args: Any) -> None:
        around = self._stack.frames[-1].data["place"].kind if self._stack.frames else None
        if place.kind != around or self._is_inside(place) or self._was_interrupted():
            self._open(module, place.name, place=place)

    def _leave(self, place: _Place, module: nn.Module, args: Any, output: Any) -> Any:
        return self._close(module, output) if self._is_inside(place) else None

    @torch.compiler.disable
    def _open(self, module: nn.Module, name: ModuleName, **data: Any) -> None:
        if self._was_interrupted():
            self._unwind()
        if not self._stack.frames:
            self._choose(module)
            _follow(self)
        data = {"disabled_region": self._in_disabled_region(), "regions_around": _autocast_regions(), **data}
        super()._open(module, name, **data)
        self._stack.frames[-1].data["regions_around"] = _autocast_regions()

    _close = torch.compiler.disable(Scopes._close)

    def _kept(self, frame: Frame) -> dict[str, Any]:
        return {**super()._kept(frame), "place": frame.data["place"], "disabled_region": self._in_disabled_region()}

    def _in_disabled_region(self) -> bool:
        """Whether the forward has opened an autocast region with `enabled=False`."""
        frame = self.current
        if frame is None:
            return False
        opened = _autocast_regions() > frame.data["regions_around"]
        return bool(frame.data["disabled_region"]) or (opened and not autocast_asked.really())

    def remove(self) -> None:
        """Remove all hooks, and close forwards that an interrupt left open; may be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unwind()
        _forget(self)
        self._leave_products()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()


_called: WeakKeyDictionary[Applied, finalize[..., Applied]] = WeakKeyDictionary()
_lock = threading.RLock()


@contextmanager
def _followed() -> Iterator[None]:
    """Follow plans where torch runs a module's operations in other functions."""
    with checkpointed(_resumed), widening(lambda: (applied.current for applied in list(_called)), _disabled_region):
        yield


def _disabled_region(frame: Frame) -> AbstractContextManager[None]:
    """Behave in this block as inside a region that the script has opened with `enabled=False`."""
    return item_set_to(frame.data, "disabled_region", True)


_following = Shared(_followed)


def _follow(applied: Applied) -> None:
    """Follow checkpointing and custom functions until the plan is removed or garbage-collected. Copies of the model
    register when called."""
    with _lock:
        if applied not in _called:
            _following.__enter__()
            _called[applied] = finalize(applied, _following.__exit__, None, None, None)
            _called[applied].atexit = False


def _forget(applied: Applied) -> None:
    following = _called.pop(applied, None)
    if following is not None:
        following()


def _resumed(function: Callable[..., Any]) -> Callable[..., Any]:
    for applied in list(_called):
        function = applied.resumed(function)
    return function


def apply(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    execution: Literal["auto", "native", "emulated"] = "auto",
    name: str = "",
) -> Applied:
    """Make `model`'s own forward run under `plan` (a Plan or the path of a plan.json); `name` is what a plan for
    several models calls this one, where their modules don't tell them apart.

    Weights stay float32; outputs come back in float32. Float32 products of the whole process may run as TF32 while a
    plan of `matmul_precision` "high" is in force natively. Native execution is torch.autocast on the model's
    device, emulated is CUDA autocast's rounding on any device; `auto` is native while the model is on CUDA,
    emulated elsewhere.
    Raises PrecauditError when the plan was made for another model, or the weights to be trained are in half precision.
    """
    from precaudit.api import load_plan

    require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {type(model).__name__}")
    require(
        isinstance(plan, Plan | str | os.PathLike),
        f"plan must be a Plan or the path of a plan.json, not {type(plan).__name__}",
    )
    require(execution in EXECUTIONS, f"execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}")
    resolved = plan if isinstance(plan, Plan) else load_plan(plan)
    if any(isinstance(owner, Applied) for _, _, owner in _hooks(model)):
        raise PrecauditError(
            "a plan is applied to this model or to a part of it; call .remove() on its handle first, or, of a copy, "
            "precaudit.remove(model)"
        )
    refuse_unplannable(model, resolved)
    fitted = fit_plan(model, resolved, name)
    for doubt in doubts(model, resolved, fitted):
        warnings.warn(doubt, stacklevel=2)
    return put_on(model, fitted, None if execution == "auto" else execution == "native")


def _on_cuda(module: nn.Module) -> bool | None:
    """Whether a part of the module lies on a CUDA device; None without parameters."""
    first = next(iter(module.parameters()), None)
    return None if first is None else first.is_cuda or any(p.is_cuda for p in module.parameters())


def put_on(model: nn.Module, plan: Plan, native: bool | None) -> Applied:
    """Put a plan on the model. `precaudit profile` replaces this function: a plan that a script applies is part of its
    own precision, like its autocast."""
    return Applied(model, plan, native)


def _autocast_regions() -> int:
    """How many autocast regions are open in this thread, enabled or not."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _index(kinds: list[ScopeFormat], scope: ScopeFormat) -> int:
    """An index for each distinct scope."""
    if scope not in kinds:
        kinds.append(scope)
    return kinds.index(scope)


def remove(model: nn.Module) -> None:
    """Remove all plans from `model`, also from a copy or an unpickled model, for which there is no handle."""
    require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {type(model).__name__}")
    for hooks, key, owner in list(_hooks(model)):
        if isinstance(owner, Applied):
            owner.remove()
            hooks.pop(key, None)


def _hooks(model: nn.Module) -> Iterator[tuple[dict[int, Any], int, object]]:
    """All forward hooks in the model, with their keys and owners."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                yield hooks, key, getattr(hook.func, "__self__", None) if isinstance(hook, partial) else None
