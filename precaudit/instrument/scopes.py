"""Module scopes: which module's forward is running, published to listeners on entry and exit."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils import checkpoint as checkpointing

from precaudit.instrument.names import ModuleName, ModuleNames, by_module, callers, find_model, fqns_of
from precaudit.instrument.patches import all_wrapped, item_set_to, wrapped
from precaudit.instrument.torch_function import tensors_in

_WITHOUT_REENTRANT = next(
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(checkpointing, name)
)
"""Later releases of torch have the second for external callers, and call the first themselves."""


REPEATED = "repeated"
"""Key in an outermost frame's data while a checkpointed part, which the backward pass will recompute, runs without
gradients."""

PLANNED = "planned"
"""Key in an outermost frame's data while a plan is active in it."""


class Frame:
    """A running forward call. `data` belongs to listeners; `op_counts` counts the calls of each operation in it."""

    __slots__ = ("_root", "call", "data", "module", "name", "op_counts")

    def __init__(self, module: nn.Module, name: ModuleName, root: Frame | None, **data: Any) -> None:
        self.module = module
        self.name = name
        self._root = root
        self.call: tuple[Any, Any] = ((), {})
        self.op_counts: dict[str, int] = {}
        self.data = data

    @property
    def root(self) -> Frame:
        """The outermost enclosing frame. There are no reference cycles, so that models and batches are freed in
        time."""
        return self._root or self

    @property
    def is_outermost(self) -> bool:
        return self._root is None


class ScopeListener:
    """Interface of listeners; both methods do nothing unless overridden."""

    def entered(self, frame: Frame) -> None:
        """Called before the module's forward."""

    def left(self, frame: Frame, output: Any) -> Any:
        """Called after the module's forward, with None where it raised; what it returns replaces the output, unless it
        is None."""


class _Stack(threading.local):
    """The stack of running forward calls, per thread, as `torch.nn.DataParallel` and servers call a model from several.
    Copies and pickles of it are empty. `call` is the stack frame of the outermost call."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.call: FrameType | None = None

    def __reduce__(self) -> Any:
        return _Stack, ()


def _running_forwards() -> Iterator[tuple[nn.Module, FrameType]]:
    """The modules whose `forward` is on the call stack, each with the calling frame."""
    for frame in callers():
        caller, code = frame.f_back, frame.f_code
        if code.co_name == "forward" and code.co_argcount and caller is not None:
            module = frame.f_locals.get(code.co_varnames[0])
            if isinstance(module, nn.Module):
                yield module, caller


def _call() -> FrameType | None:
    """torch's frame that calls the hook at the start of a module, which lives as long as that call."""
    return next((frame for frame in callers() if frame.f_globals.get("__name__") == nn.Module.__module__), None)


def checkpointed(resumed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> AbstractContextManager[None]:
    """Make activation checkpointing run `resumed(function)` in place of its function, also when it recomputes it in the
    backward pass, where no module is running."""

    def resuming_first(original: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(resumed(function), *args, **kwargs)

    def resuming_second(original: Any, context: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(context, resumed(function), *args, **kwargs)

    # Functions that `checkpoint` calls are patched, so that it doesn't matter how a script imported it.
    return all_wrapped(
        (checkpointing.CheckpointFunction, "forward", resuming_second),
        (checkpointing, _WITHOUT_REENTRANT, resuming_first),
    )


class Scopes:
    """Tracks the running modules, publishes them to `listeners`, and names all modules of a model. Subclasses decide
    how the start and the end of a forward are detected."""

    def __init__(self) -> None:
        self.listeners: list[ScopeListener] = []
        self._stack = _Stack()

    @property
    def current(self) -> Frame | None:
        return self._stack.frames[-1] if self._stack.frames else None

    def modules_of(self, model: str) -> Collection[str]:
        raise NotImplementedError

    def _open(self, module: nn.Module, name: ModuleName, **data: Any) -> None:
        frames = self._stack.frames
        if not frames:
            self._stack.call = _call()
        frame = Frame(module, name, frames[-1].root if frames else None, **data)
        frames.append(frame)
        for listener in self.listeners:
            listener.entered(frame)

    def _close(self, module: nn.Module, output: Any, call: tuple[Any, Any] = ((), {})) -> Any:
        """Unwinds to the module's own frame: inner ones are left over when a forward was cut short."""
        own, result, frames = False, None, self._stack.frames
        while frames and not own:
            own = frames[-1].module is module
            result = self._pop(output if own else None, call)
        return result

    def _pop(self, output: Any = None, call: tuple[Any, Any] = ((), {})) -> Any:
        frames = self._stack.frames
        frame = frames.pop()
        frame.call = call
        if not frames:
            self._stack.call = None
        for listener in reversed(self.listeners):
            replacement = listener.left(frame, output)
            output = output if replacement is None else replacement
        return output

    def _unwind(self) -> None:
        while self._stack.frames:
            self._pop()

    @torch.compiler.assume_constant_result
    def _was_interrupted(self) -> bool:
        """Whether frames of an interrupted forward remain: torch calls hooks for an `Exception` only. False during
        tracing."""
        call = self._stack.call
        if call is None:
            return False
        try:
            call.clear()  # Python refuses for a running frame; torch's frames don't need their variables any more
        except RuntimeError:
            return False
        return True

    def _kept(self, frame: Frame) -> dict[str, Any]:
        """The frame's data for the case that checkpointing recomputes what runs in it."""
        return {PLANNED: frame.root.data.get(PLANNED, False)}

    def resumed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that runs `function` in the current scope: activation checkpointing recomputes it in the backward
        pass, outside of every module."""
        frame = self.current
        if frame is None:
            return function
        module, name, kept = frame.module, frame.name, self._kept(frame)

        def again(*args: Any, **kwargs: Any) -> Any:
            if (running := self.current) is not None:
                data = running.root.data
                with item_set_to(data, REPEATED, data.get(REPEATED) or not torch.is_grad_enabled()):
                    return function(*args, **kwargs)
            self._open(module, name, **kept)
            try:
                return function(*args, **kwargs)
            finally:
                self._unwind()

        return again


class ModuleScopes(Scopes):
    """Publishes every module's forward through torch's global module hooks, wherever modules are created."""

    def __init__(self, names: ModuleNames, only: nn.Module | None = None) -> None:
        """`only` limits the scopes to one model's modules; by default every module counts."""
        super().__init__()
        self.names = names
        self._only = None if only is None else ref(only)
        self._counted = by_module()
        self.raised_in: str | None = None
        self.bypassed: dict[ModuleName, tuple[str, int]] = {}
        """Trained modules whose `forward` was called directly, bypassing hooks, and the line of that call."""
        self._born_inside = by_module()

    def modules_of(self, model: str) -> Collection[str]:
        module = self.names.model(model)
        return fqns_of(module).values() if module is not None else ()

    @contextmanager
    def installed(self) -> Iterator[ModuleScopes]:
        with ExitStack() as stack:
            stack.enter_context(checkpointed(self.resumed))
            stack.enter_context(wrapped(nn.Module, "__init__", self._noting_births))
            for handle in (
                hooks.register_module_forward_pre_hook(self._enter),
                hooks.register_module_forward_hook(self._leave, with_kwargs=True, always_call=True),
            ):
                stack.callback(handle.remove)
                # remove() doesn't reset this flag, and torch.compile would warn of a global hook from then on
                stack.callback(hooks._global_forward_hooks_with_kwargs.pop, handle.id, None)
            stack.callback(self._unwind)
            yield self

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.jit.is_tracing() or not self._counts(module):  # a traced graph (for export) is no training
            return
        if self._was_interrupted():
            self._unwind()
        if self._stack.frames and self._is_passing(module):
            return
        name = self.names.of(module)
        if not self._stack.frames:
            self.raised_in = None
        self._open(module, name)

    def _counts(self, module: nn.Module) -> bool:
        if self._only is None:
            return True
        if module not in self._counted:
            model = self._only()
            self._counted[module] = model is not None and any(inner is module for inner in model.modules())
        return bool(self._counted[module])

    def _noting_births(self, original: Callable[..., None], module: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(module, *args, **kwargs)
        if self._stack.frames:
            self._born_inside[module] = True

    def _is_passing(self, module: nn.Module) -> bool:
        """Whether `module` was created in a running forward, as in `nn.LayerNorm(d)(x)`: no plan can be applied to it,
        so its operations belong to that forward."""
        return module in self._born_inside and module not in self.names and find_model(module)[1] in self._born_inside

    def _note_bypassed(self, module: nn.Module, output: Any) -> None:
        """Note a module whose `forward` was called directly: no scope is open, but a containing module's `forward` is
        on the call stack. It counts once a gradient arrives: a probe of shapes, say, is no training."""
        trained = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        for owner, caller in _running_forwards() if trained else ():
            if self._counts(owner) and owner is not module and any(inner is module for inner in owner.modules()):
                name, place = self.names.of(owner), (caller.f_code.co_filename, caller.f_lineno)
                for tensor in trained if name not in self.bypassed else ():
                    tensor.register_hook(partial(self._bypass, name, place))

    def _bypass(self, name: ModuleName, place: tuple[str, int], gradient: torch.Tensor) -> None:
        self.bypassed.setdefault(name, place)

    def _leave(self, module: nn.Module, args: Any, *kwargs_output: Any) -> Any:
        """Unwinds to the module's own frame: inner ones are left over when a forward was cut short.

        torch leaves the keyword arguments out when the forward raised.
        """
        kwargs, output = kwargs_output if len(kwargs_output) == 2 else ({}, *kwargs_output)
        frames = self._stack.frames
        if not any(frame.module is module for frame in frames):
            return None
        if output is None and self.raised_in is None and sys.exc_info()[0] is not None:
            name = frames[-1].name
            self.raised_in = f"{name.model}:{name.fqn}"
        result = self._close(module, output, (args, kwargs))
        if not frames and torch.is_grad_enabled():
            self._note_bypassed(module, result)
        return result
