"""The precision a script chose for itself: noted, and switched off where float32 or a plan is to be measured."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.amp.autocast_mode import autocast
from torch.overrides import TorchFunctionMode

from precaudit.execution import apply as applying
from precaudit.execution.apply import Applied
from precaudit.execution.loss_scaling import SCALED
from precaudit.instrument.patches import wrapped
from precaudit.instrument.scopes import checkpointed
from precaudit.instrument.torchfunction import map_tensors
from precaudit.model import Location, Plan
from precaudit.tracing.ops import caller_location, line_of

_LOW = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_MOST_PLACES = 20
_REINTERPRETING = {"view", "from_file"}
"""The same bits are read as another type, where they are asked for one."""
_LOW_CASTS = {"half", "bfloat16"}


def _opened_by_torch() -> bool:
    """Whether torch itself opens this autocast region (checkpointing restores the state it saw)."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.endswith(("autocast_mode", "precaudit.ownprecision.baseline")):
            return module.partition(".")[0] == "torch"
        frame = frame.f_back  # type: ignore[assignment]
    return False


def keeping_what_is_asked(original: Callable[..., None]) -> Callable[..., None]:
    """In place of `autocast.__init__`: torch disables regions for "cuda" on a machine without one, which says nothing
    of the script."""

    def __init__(
        region: autocast, device_type: str, dtype: Any = None, enabled: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        original(region, device_type, dtype, enabled, *args, **kwargs)
        region.precaudit_asked = enabled  # type: ignore[attr-defined]
        region.precaudit_of_torch = _opened_by_torch()  # type: ignore[attr-defined]

    return __init__


class _Region(NamedTuple):
    """An open autocast region: its dtype, None if off; if it is an island; if it keeps what it casts."""

    dtype: str | None
    island: bool
    caches: bool


class Baseline:
    """What the script asked for: `settings` has its autocast dtype, its GradScaler's arguments and the default of a
    plan that it applies, when it has any."""

    def __init__(self, in_forward: Callable[[], bool] = lambda: True) -> None:
        """`in_forward` says whether a module's forward is running."""
        self.settings: dict[str, object] = {}
        self._in_forward = in_forward
        self._regions: list[_Region] = []
        self._cache = object()
        self._needs: tuple[bool, ...] = ()
        self.region_at: Location | None = None
        """Where the outermost autocast region was opened last."""

    def in_island(self) -> bool:
        """Inside an autocast region that the script (or its library) opened with `enabled=False`, to keep something in
        it from low precision. The outermost region around a model's call keeps nothing: it is the script's switch
        for mixed precision (`enabled=args.amp`), and off."""
        return any(region.island for region in self._regions)

    @contextmanager
    def island(self) -> Iterator[None]:
        """As within a region of the script's with `enabled=False`, which is off already."""
        self._regions.append(_Region(None, True, False))
        try:
            yield
        finally:
            self._regions.pop()

    def _kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What checkpointing repeats of an island stays one."""
        if not self.in_island():
            return function

        def kept(*args: Any, **kwargs: Any) -> Any:
            with self.island():
                return function(*args, **kwargs)

        return kept

    def autocast_in_force(self) -> str | None:
        """The dtype of the autocast region that the script is in, None outside."""
        return self._regions[-1].dtype if self._regions else None

    def cast_cache(self) -> object | None:
        """What stands for the weights that torch's autocast has cast and keeps; None where it keeps or casts none."""
        return self._cache if self._regions and self._regions[-1].dtype and self._regions[-1].caches else None

    @contextmanager
    def neutralized(self) -> Iterator[None]:
        """autocast regions and plans do nothing and GradScalers are disabled until the block ends."""
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(applying, "put_on", self._applied(applying.put_on)))
            stack.enter_context(mock.patch.object(autocast, "__init__", keeping_what_is_asked(autocast.__init__)))
            stack.enter_context(mock.patch.object(autocast, "__enter__", self._entered(autocast.__enter__)))
            stack.enter_context(mock.patch.object(autocast, "__exit__", self._left(autocast.__exit__)))
            clear = torch.clear_autocast_cache
            stack.enter_context(mock.patch.object(torch, "clear_autocast_cache", self._clearing(clear)))
            stack.enter_context(checkpointed(self._kept))
            scaler = torch.amp.GradScaler
            stack.enter_context(mock.patch.object(scaler, "__init__", self._scaler_created(scaler.__init__)))
            stack.enter_context(mock.patch.object(scaler, "scale", _scaling(scaler.scale)))
            yield

    def _entered(self, original: Callable[[autocast], Any]) -> Callable[[autocast], autocast]:
        """torch's own regions restore what was in force around them, which may be a plan's autocast. An island
        switches that off."""

        def __enter__(region: autocast) -> autocast:
            if getattr(region, "precaudit_of_torch", False):
                original(region)
                return region
            asked = bool(getattr(region, "precaudit_asked", region._enabled))
            dtype = str(region.fast_dtype).removeprefix("torch.") if asked else None
            place = caller_location()
            if dtype is not None:
                self._asked(dtype, place)
            if not self._regions:
                self._cleared()
                self.region_at = place
            island = dtype is None and (bool(self._regions) or self._in_forward())
            self._regions.append(_Region(dtype, island, region._cache_enabled))
            if island:
                original(region)
            return region

        return __enter__

    def _asked(self, dtype: str, place: Location | None) -> None:
        """Regions that record gradients come before others, and float16, which needs a loss scale, before bfloat16."""
        needs = (torch.is_grad_enabled(), dtype == "float16")
        if needs > self._needs:
            self._needs = needs
            self.settings["autocast"] = dtype
            if place is not None:
                self.settings["autocast_at"] = line_of(place)

    def _cleared(self) -> None:
        self._cache = object()

    def _clearing(self, original: Callable[[], None]) -> Callable[[], None]:
        """torch clears what it has cast where an outermost region ends, which may be a plan's."""

        def clear() -> None:
            self._cleared()
            original()

        return clear

    def _left(self, original: Callable[..., Any]) -> Callable[..., None]:
        def __exit__(region: autocast, *exception: Any) -> None:
            if getattr(region, "precaudit_of_torch", False) or self._regions.pop().island:
                original(region, *exception)

        return __exit__

    def _applied(self, original: Callable[..., Applied]) -> Callable[..., Applied]:
        def put_on(model: torch.nn.Module, plan: Plan, native: bool | None) -> Applied:
            self.settings["plan"] = plan.default
            handle = original(model, plan, native)
            handle.remove()
            return handle

        return put_on

    def _scaler_created(self, original: Callable[..., None]) -> Callable[..., None]:
        def __init__(scaler: Any, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
            names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled")
            asked = {**dict(zip(names, args, strict=False)), **kwargs}
            if asked.pop("enabled", True):
                self.settings["grad_scaler"] = {
                    "init_scale": asked.get("init_scale", 2.0**16),
                    "growth_interval": asked.get("growth_interval", 2000),
                }
            original(scaler, device, **{**asked, "enabled": False})

        return __init__


def _scaling(original: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that is scaled by a scaler which is off is known by it: a plan's loss scale may take its place."""

    def scale(scaler: Any, outputs: Any) -> Any:
        return map_tensors(_scaled, original(scaler, outputs))

    return scale


def _scaled(loss: torch.Tensor) -> torch.Tensor:
    """Under a name of its own: what the script has of the loss itself is not scaled."""
    if not loss.requires_grad:
        return loss
    loss = loss.view_as(loss)
    setattr(loss, SCALED, True)
    return loss


def _float32_dtype(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _LOW else value


def called_by_precaudit(func: Any) -> bool:
    """Called by precaudit itself, to round: past the modes that hand the call on, precaudit's own, which have it as
    their `func`, and the script's, as `with torch.device(...)` is one."""
    frame: Any = sys._getframe(2)
    while frame is not None and _hands_on(frame):
        if _is_ours(frame) and frame.f_locals.get("func") != func:
            return True
        frame = frame.f_back
    return False


def _is_ours(frame: Any) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith("precaudit."))


def _hands_on(frame: Any) -> bool:
    """Of precaudit, or of any mode."""
    return _is_ours(frame) or frame.f_code.co_name == "__torch_function__"


class CastWatch(TorchFunctionMode):
    """Notes where a script casts to low precision by itself, anywhere in it; changes nothing."""

    def __init__(self, settings: dict[str, object]) -> None:
        super().__init__()
        self._settings = settings
        self._places: dict[tuple[str, int], str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = _asked_for(func, args, kwargs) if len(self._places) < _MOST_PLACES else None
        if dtype is not None and not called_by_precaudit(func):
            place = caller_location()
            if place is not None:
                self._places[place.path, place.line] = dtype
                self._settings["casts"] = [
                    {"path": path, "line": line, "dtype": name} for (path, line), name in self._places.items()
                ]
        return func(*args, **kwargs)


def _asked_for(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """The low-precision dtype that a call asks for, by its name or an argument."""
    name = getattr(func, "__name__", "")
    if name in _LOW_CASTS:
        return "float16" if name == "half" else name
    asked = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype) and value in _LOW)
    return next((str(dtype).removeprefix("torch.") for dtype in asked), None)


class Float32Mode(TorchFunctionMode):
    """Turns a script's own casts to low precision into float32: `.half()`, `.to(torch.bfloat16)`, `dtype=...`. A cast
    is a copy still, also one back to float32: the script may go on to change what it cast.

    What is low all the same is so by a plan. Where a function asks for its dtype, as in `y.to(x.dtype)`, it means that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asking: set[tuple[torch.dtype, CodeType]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if called_by_precaudit(func):
            return func(*args, **(kwargs or {}))
        if getattr(func, "__self__", None) is torch.Tensor.dtype:
            return self._asked(func(*args))
        name, asked = getattr(func, "__name__", ""), kwargs or {}
        kwargs = {key: self._float32_dtype(value) for key, value in asked.items()}
        if name in _REINTERPRETING and torch.float32 in (*kwargs.values(), *map(self._float32_dtype, args)):
            return func(*args, **asked).float()
        if not args or not isinstance(args[0], torch.Tensor) or not _casts(name, args, kwargs):
            return func(*map(self._float32_dtype, args), **kwargs)
        source = args[0]
        result = source.float() if name in _LOW_CASTS else func(*map(self._float32_dtype, args), **kwargs)
        kept = source.is_leaf and source.requires_grad  # an optimizer may be given it
        return result.clone() if result is source and not kept else result

    def _asked(self, dtype: torch.dtype) -> torch.dtype:
        if dtype in _LOW:
            frame: Any = sys._getframe(2)
            while _hands_on(frame):
                frame = frame.f_back
            self._asking.add((dtype, frame.f_code))
        return dtype

    def _float32_dtype(self, value: Any) -> Any:
        if not (isinstance(value, torch.dtype) and value in _LOW) or self._is_followed(value):
            return value
        return torch.float32

    def _is_followed(self, dtype: torch.dtype) -> bool:
        """Whether a function that is running has asked a low tensor for this dtype."""
        frame: Any = sys._getframe(2) if self._asking else None
        while frame is not None and (dtype, frame.f_code) not in self._asking:
            frame = frame.f_back
        return frame is not None


def _casts(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    asked = any(isinstance(value, (torch.dtype, torch.Tensor)) for value in (*args[1:], *kwargs.values()))
    return name in ("half", "bfloat16", "float") or (name in ("to", "type", "type_as") and asked)


@contextmanager
def everywhere(mode: TorchFunctionMode) -> Iterator[None]:
    """A function mode is on in one thread: on here, and in the threads that start meanwhile, in which a script may
    train."""

    def starting(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
        def bootstrap(thread: threading.Thread) -> None:
            with mode:
                original(thread)

        return bootstrap

    with wrapped(threading.Thread, "_bootstrap_inner", starting), mode:
        yield


def _read_in_float32(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor on stored values has to have their dtype first."""

    def read(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            tensor = original(*args, **kwargs)
            return tensor.float() if tensor.dtype in _LOW else tensor

    return read


@contextmanager
def float32_only() -> Iterator[None]:
    """`Float32Mode`, what is loaded, or comes from another process, as float32, and a default dtype that stays so."""
    original = torch.set_default_dtype

    def set_default_dtype(dtype: torch.dtype) -> None:
        original(_float32_dtype(dtype))

    with (
        mock.patch.object(torch, "set_default_dtype", set_default_dtype),
        wrapped(torch._utils, "_rebuild_tensor", _read_in_float32),
        wrapped(torch, "frombuffer", _read_in_float32),
        everywhere(Float32Mode()),
    ):
        yield


def _uncompiled(model: Any = None, **options: Any) -> Any:
    """torch.compile's signature, as a function or a decorator with options."""
    return model if model is not None else (lambda function: function)


def _scripted_for_torch(original: Callable[..., Any], compiles: Callable[[], None]) -> Callable[..., Any]:
    """What torch scripts for itself, such as its rules for forward-mode derivatives, it can't do without."""
    jit = torch.jit._state._enabled

    @functools.wraps(original)
    def script(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] != "torch":
            if args and isinstance(args[0], torch.nn.Module):
                compiles()
            return original(*args, **kwargs)
        with mock.patch.object(jit, "enabled", True):
            return original(*args, **kwargs)

    return script


@contextmanager
def eager_only(compiles: Callable[[], None] = lambda: None) -> Iterator[None]:
    """torch.compile and TorchScript run their functions eagerly, so that their operations can be seen. `compiles` is
    called where the script has TorchScript compile a module."""
    jit = torch.jit._state._enabled
    was_enabled = jit.enabled
    jit.enabled = False
    try:
        with (
            mock.patch.object(torch, "compile", _uncompiled),
            mock.patch.object(torch.jit, "script", _scripted_for_torch(torch.jit.script, compiles)),
            mock.patch.object(torch.jit, "trace", _scripted_for_torch(torch.jit.trace, compiles)),
        ):
            yield
    finally:
        jit.enabled = was_enabled
