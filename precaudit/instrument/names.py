"""Which model a module belongs to, and its fully qualified name in it.

Scripts create models anywhere: as globals, inside functions, as attributes of a trainer, or as copies.
The first call of an unknown module looks for the outermost module that contains it among the variables
of the calling frames, the script's own before a library's; the whole tree is named then.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple
from weakref import ref

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WRAPPER_TYPES = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
_WRAPPER_TYPES |= {"AveragedModel", "ModelEmaV2", "ModelEmaV3"}
"""Wrappers that call their model `module`. Those of torch and timm for averages hold a copy of the model."""


class ModuleName(NamedTuple):
    """A module's model (by the script's variable name) and its fqn in that model ('' for the model itself)."""

    model: str
    fqn: str

    @property
    def qualified(self) -> str:
        """The fqn with the model's name in front."""
        return f"{self.model}.{self.fqn}".rstrip(".")


def has_parameters(module: nn.Module) -> bool:
    """Whether the module, or one inside it, has parameters."""
    return next(iter(module.parameters()), None) is not None


def is_leaf(module: nn.Module) -> bool:
    """Whether the module has no children."""
    return next(iter(module.children()), None) is None


def callers() -> Iterator[types.FrameType]:
    """The stack's frames, the innermost first."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def outside_callers() -> Iterator[types.FrameType]:
    """The frames outside of torch and precaudit."""
    inside = ("torch", "precaudit")
    return (frame for frame in callers() if frame.f_globals.get("__name__", "").partition(".")[0] not in inside)


def _named_values(frame: types.FrameType) -> Iterator[tuple[str, object]]:
    """Global and local variables, as they were bound, then what is one level inside of the objects among the locals."""
    variables = list(frame.f_locals.items())
    yield from list(frame.f_globals.items())
    yield from variables
    for _, value in variables:
        if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, types.ModuleType, type)):
            yield from list(vars(value).items())
        if isinstance(value, dict) and len(value) < 64:
            yield from ((str(key), item) for key, item in list(value.items()))


def _owners(module: nn.Module, frames: Iterable[types.FrameType]) -> Iterator[tuple[str, nn.Module]]:
    checked: dict[int, bool] = {}
    for name, value in _modules_in_sight(frames):
        if id(value) not in checked:
            checked[id(value)] = any(inner is module for inner in value.modules())
        if checked[id(value)]:
            yield name, value


def _modules_in_sight(frames: Iterable[types.FrameType]) -> Iterator[tuple[str, nn.Module]]:
    for frame in frames:
        for name, value in _named_values(frame):
            if isinstance(value, nn.Module) and hasattr(value, "_modules"):  # else it is under construction
                yield name, value


def _is_installed(frame: types.FrameType) -> bool:
    """Whether the frame's code belongs to an installed library."""
    return any(folder in frame.f_code.co_filename for folder in ("site-packages", "dist-packages"))


def find_model(module: nn.Module) -> tuple[str, nn.Module]:
    """The outermost module that the script holds and that contains `module`, and the variable that holds it.

    If only a library holds one, it is the library's or, where that has no other state (a wrapper for a single call),
    the one inside it that the script holds.
    """
    frames = list(outside_callers())[::-1]
    script = [frame for frame in frames if not _is_installed(frame)]
    held = list(_owners(module, script))
    owners = held or list(_owners(module, frames))
    name, model = _outermost(owners) or (_variable_of(module), module)
    return (name, model) if held else _wrapped_by(model, script) or (name, model)


def _wrapped_by(wrapper: nn.Module, frames: Iterable[types.FrameType]) -> tuple[str, nn.Module] | None:
    """The module that holds all the state of a wrapper and is visible in the frames; None where there is none."""
    state, inside = _state_of(wrapper), {id(module) for module in wrapper.modules()}
    inner = [(name, value) for name, value in _modules_in_sight(frames) if id(value) in inside]
    return _outermost([(name, value) for name, value in inner if state and state == _state_of(value)])


def _state_of(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _outermost(owners: Sequence[tuple[str, nn.Module]]) -> tuple[str, nn.Module] | None:
    """The largest module, by its first variable name that isn't internal to Python: the one that exists once the model
    is built."""
    if not owners:
        return None
    model = max((value for _, value in owners), key=lambda m: sum(1 for _ in m.modules()))
    names = [name for name, value in owners if value is model and name != "self" and not name.startswith("__")]
    return (names[0] if names else _variable_of(model)), model


def _variable_of(model: nn.Module) -> str:
    """A variable name derived from the type: `lit_model` for `LitModel()`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(model).__name__).lower()


def fqns_of(model: nn.Module) -> dict[nn.Module, str]:
    """The names of all modules as the script knows them: without the prefixes of torch.compile, DDP, FSDP, and wrappers
    that expose the inner model's `state_dict` as their own."""
    wrapped = {fqn for fqn, module in model.named_modules() if type(module).__name__ in _WRAPPER_TYPES}
    posing = {fqn for fqn, module in model.named_modules() if _poses(module)}
    return {module: _visible(fqn, wrapped, posing) for fqn, module in model.named_modules()}


def _poses(module: nn.Module) -> bool:
    """Whether a module represents the one module that it holds: it overrides `state_dict` and has no state itself."""
    inner = next(module.children(), None)
    if inner is None or type(module).state_dict is nn.Module.state_dict:
        return False
    state = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return not state and set(module.children()) <= set(inner.modules())


def _visible(fqn: str, wrapped: set[str], posing: set[str]) -> str:
    parts = fqn.split(".")
    outside = [".".join(parts[:i]) for i in range(len(parts))]
    inside = [
        outer in posing or (part == "module" and outer in wrapped) for outer, part in zip(outside, parts, strict=True)
    ]
    return ".".join(part for part, hidden in zip(parts, inside, strict=True) if not hidden and part not in _WRAPPERS)


class _ModuleRef(WeakIdRef):
    """A weak reference by identity. torch's WeakIdRef reads a tensor attribute, which is slow for modules."""

    __slots__ = ()
    __call__ = ref.__call__


def by_module() -> MutableMapping[nn.Module, Any]:
    """A weak dictionary keyed by the identity of modules."""
    return WeakIdKeyDictionary(ref_type=_ModuleRef)


class ModuleNames:
    """Names of all modules met so far, which are referenced weakly."""

    def __init__(self) -> None:
        # By identity: a library's module may define == elementwise, without a truth value.
        self._names: MutableMapping[nn.Module, ModuleName] = by_module()
        self._models: dict[str, ref[nn.Module]] = {}
        self._moved: dict[ModuleName, ModuleName] = {}
        self.on_cuda = False
        """Whether any model had parameters on a CUDA device when it was named."""
        self.before_naming: Callable[[], None] = lambda: None
        """Called before a new model is named, to release models that the script no longer holds."""

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._names

    def of(self, module: nn.Module) -> ModuleName:
        name = self._names.get(module)
        if name is None:
            self.before_naming()
            variable, model = find_model(module)
            unique = self.add_model(model, variable)
            name = self._names.setdefault(module, ModuleName(unique, ""))
        return name

    def add_model(self, model: nn.Module, variable: str) -> str:
        """Name all modules under `model`; returns the model's unique name, which it keeps when it gets new modules.

        Modules that belong to another model (in a slice of a Sequential, say) keep their names.
        """
        met = self._names.get(model)
        unique = met.model if met and self.model(met.model) is model else self._unique(model, variable)
        self._models[unique] = ref(model)
        self.on_cuda = self.on_cuda or any(parameter.device.type == "cuda" for parameter in model.parameters())
        tree = fqns_of(model)
        for module, fqn in tree.items():
            known = self._names.get(module)
            owner = self.model(known.model) if known else None
            if owner is None or owner in tree:
                self._rename(module, known, ModuleName(unique, fqn))
        return unique

    def _rename(self, module: nn.Module, known: ModuleName | None, name: ModuleName) -> None:
        self._names[module] = name
        self._moved.pop(name, None)
        if known is not None and known != name:
            self._moved[known] = name

    def latest(self, name: ModuleName) -> ModuleName:
        """The current name of a module that was met as `name` before it became part of a larger model."""
        while name in self._moved:
            name = self._moved[name]
        return name

    def shown(self, name: ModuleName) -> str:
        """The name as in a report: prefixed by the model's name where the script has several models."""
        return name.qualified if len(self.models) > 1 else name.fqn

    def model(self, name: str) -> nn.Module | None:
        holder = self._models.get(name)
        return holder() if holder else None

    @property
    def models(self) -> dict[str, nn.Module]:
        """The living models by name, without those that became part of another one."""
        living = {name: model for name in self._models if (model := self.model(name)) is not None}
        return {name: model for name, model in living.items() if self.of(model).model == name}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all living models."""
        return (parameter for model in self.models.values() for parameter in model.parameters())

    def _unique(self, model: nn.Module, variable: str) -> str:
        """A unique name. A re-created model (cross-validation, restarts) gets the name of the one that it replaces."""
        name, number = variable, 1
        while (known := self.model(name)) is not None and known is not model:
            number += 1
            name = f"{variable}_{number}"
        return name
