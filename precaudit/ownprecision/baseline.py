"""The script's own mixed-precision settings (autocast regions, a GradScaler, an applied plan): recorded, and disabled
where float32 or another plan is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.amp.autocast_mode import autocast

from precaudit.execution import apply as applying
from precaudit.execution.apply import Applied
from precaudit.execution.loss_scaling import SCALED
from precaudit.instrument.names import callers
from precaudit.instrument.patches import all_wrapped, wrapped
from precaudit.instrument.scopes import checkpointed
from precaudit.instrument.torch_function import dtype_name, map_tensors
from precaudit.model import Location, Plan
from precaudit.model.plan import DEFAULT_INTERVAL, DEFAULT_SCALE
from precaudit.ownprecision.records import OwnPrecision, Scaler
from precaudit.tracing.ops import script_location


def _opened_by_torch() -> bool:
    """Whether torch itself opens this autocast region: checkpointing restores the state of the forward pass."""
    modules = (frame.f_globals.get("__name__", "") for frame in callers())
    between = ("autocast_mode", __name__, wrapped.__module__, callers.__module__)
    return next((m.partition(".")[0] == "torch" for m in modules if not m.endswith(between)), False)


def keeping_what_is_asked(
    original: Any, region: Any, device_type: str, dtype: Any = None, enabled: bool = True, *args: Any, **kwargs: Any
) -> None:
    """Wraps `autocast.__init__` to record whether the script enabled the region: on a machine without CUDA torch
    disables those for "cuda"."""
    original(region, device_type, dtype, enabled, *args, **kwargs)
    region.precaudit_asked = enabled
    region.precaudit_of_torch = _opened_by_torch()


class _Region(NamedTuple):
    """An open autocast region: its dtype (None if disabled), whether it disables autocast that would be active, and
    whether torch caches its casts."""

    dtype: str | None
    disables: bool
    caches: bool


class Baseline:
    """Disables the script's own mixed precision, and records it in `own`."""

    def __init__(self, in_forward: Callable[[], bool] = lambda: True) -> None:
        """`in_forward` says whether a module's forward is running."""
        self.own = OwnPrecision()
        self._in_forward = in_forward
        self._regions: list[_Region] = []
        self._cache = object()
        self._needs: tuple[bool, ...] = ()
        self.region_at: Location | None = None
        """The line that last opened an outermost autocast region."""

    def in_disabled_region(self) -> bool:
        """Whether the script (or a library) has disabled autocast inside a model or inside another region, to keep some
        operations in float32. A disabled region around the model's call doesn't count: there it is the script's
        switch for mixed precision (`enabled=args.amp`)."""
        return any(region.disables for region in self._regions)

    @contextmanager
    def disabled_region(self) -> Iterator[None]:
        """Behave in this block as inside a region that the script has opened with `enabled=False`."""
        self._regions.append(_Region(None, True, False))
        try:
            yield
        finally:
            self._regions.pop()

    def _kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Checkpointing recomputes a function of a disabled region with autocast disabled again."""
        if not self.in_disabled_region():
            return function

        def kept(*args: Any, **kwargs: Any) -> Any:
            with self.disabled_region():
                return function(*args, **kwargs)

        return kept

    def autocast_in_force(self) -> str | None:
        """The dtype of the script's current autocast region; None outside."""
        return self._regions[-1].dtype if self._regions else None

    def cast_cache(self) -> object | None:
        """Identifies the current contents of torch's autocast weight cache; None where nothing is cast or cached."""
        return self._cache if self._regions and self._regions[-1].dtype and self._regions[-1].caches else None

    def seen(self) -> OwnPrecision:
        """What was recorded, with the float16 that accelerate was asked for and ignores on a CPU."""
        state = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
        asked = getattr(state, "_shared_state", {}).get("_mixed_precision")
        return replace(self.own, left_off="accelerate") if asked == "fp16" else self.own

    @contextmanager
    def neutralized(self) -> Iterator[None]:
        """Disable autocast regions, GradScalers and plans of the script in this block."""
        scaler = torch.amp.GradScaler
        switched_off = all_wrapped(
            (applying, "put_on", self._applied),
            (autocast, "__init__", keeping_what_is_asked),
            (autocast, "__enter__", self._entered),
            (autocast, "__exit__", self._left),
            (torch, "clear_autocast_cache", self._clearing),
            (scaler, "__init__", self._scaler_created),
            (scaler, "scale", self._scaling),
        )
        with switched_off, checkpointed(self._kept):
            yield

    def _entered(self, original: Callable[[autocast], Any], region: autocast) -> autocast:
        """Regions that torch itself opens restore the surrounding autocast state, which may be a plan's. A region that
        disables autocast really disables that."""
        if getattr(region, "precaudit_of_torch", False):
            original(region)
            return region
        asked = bool(getattr(region, "precaudit_asked", region._enabled))
        dtype = dtype_name(region.fast_dtype) if asked else None
        place = script_location()
        if dtype is not None:
            self._asked(dtype, place)
        if not self._regions:
            self._cleared()
            self.region_at = place
        disables = dtype is None and (bool(self._regions) or self._in_forward())
        self._regions.append(_Region(dtype, disables, region._cache_enabled))
        if disables:
            original(region)
        return region

    def _asked(self, dtype: str, place: Location | None) -> None:
        """Record the dtype of the most relevant region: one with gradients before others, and float16, which needs a
        loss scale, before bfloat16."""
        needs = (torch.is_grad_enabled(), dtype == "float16")
        if needs > self._needs:
            self._needs = needs
            self.own.autocast = dtype
            self.own.autocast_at = place or self.own.autocast_at

    def _cleared(self) -> None:
        self._cache = object()

    def _clearing(self, original: Callable[[], None]) -> None:
        """torch calls this at the end of an outermost region, also of a plan's."""
        self._cleared()
        original()

    def _left(self, original: Callable[..., Any], region: autocast, *exception: Any) -> None:
        if getattr(region, "precaudit_of_torch", False) or self._regions.pop().disables:
            original(region, *exception)

    def _applied(
        self, original: Callable[..., Applied], model: torch.nn.Module, plan: Plan, native: bool | None
    ) -> Applied:
        self.own.plan = plan.default
        handle = original(model, plan, native)
        handle.remove()
        return handle

    def _scaler_created(
        self, original: Callable[..., None], scaler: Any, device: str = "cuda", *args: Any, **kwargs: Any
    ) -> None:
        names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled")
        asked = {**dict(zip(names, args, strict=False)), **kwargs}
        if not asked.pop("enabled", True):
            self.own.left_off = "grad_scaler"
        else:
            self.own.grad_scaler = Scaler(
                asked.get("init_scale", DEFAULT_SCALE),
                asked.get("growth_interval", DEFAULT_INTERVAL),
                used=type(scaler).scale is not torch.amp.GradScaler.scale,  # FSDP's has its own, which isn't watched
            )
        original(scaler, device, **{**asked, "enabled": False})

    def _scaling(self, original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
        """Mark the losses that the disabled scaler would have scaled, so that a plan's loss scale applies to them."""
        if self.own.grad_scaler and not self.own.grad_scaler.used:
            self.own.grad_scaler = replace(self.own.grad_scaler, used=True)
        return map_tensors(_scaled, original(scaler, outputs))


def _scaled(loss: torch.Tensor) -> torch.Tensor:
    """A marked view of the loss: the script may use the loss itself elsewhere, unscaled."""
    if not loss.requires_grad:
        return loss
    loss = loss.view_as(loss)
    setattr(loss, SCALED, True)
    return loss
