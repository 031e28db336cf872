"""Module scopes: which module's forward is running, told to listeners on entry and exit."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from types import FrameType
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils import checkpoint as checkpointing

from precaudit.instrument.names import ModuleName, ModuleNames, by_module, find_model, fqns_of
from precaudit.instrument.patches import all_wrapped, wrapped

_WITHOUT_REENTRANT = next(
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(checkpointing, name)
)
"""Later releases of torch keep the second for callers of their own, and call the first."""


REPEATED = "repeated"
"""In an outermost frame's data while a checkpointed part runs without gradients, as the backward pass repeats it."""

PLANNED = "planned"
"""In an outermost frame's data while a plan is in force in it."""


class Frame:
    """One running forward. `data` belongs to listeners; `op_counts` numbers the calls of each op in this forward."""

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
        """The outermost frame around this one. No frame refers to itself, so models and batches die in time."""
        return self._root or self

    @property
    def is_outermost(self) -> bool:
        return self._root is None


class ScopeListener:
    """What may listen to modules' forwards; both methods do nothing unless overridden."""

    def entered(self, frame: Frame) -> None:
        """Before the module's forward."""

    def left(self, frame: Frame, output: Any) -> Any:
        """After it, with None where it raised; returns the output, replaced or not."""
        return output


class _Stack(threading.local):
    """The forwards that a thread is in: `torch.nn.DataParallel` and servers call one model from several. A copy of
    what holds this, or a process that it is sent to, is in none. `call` is the outermost one's own."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.call: FrameType | None = None

    def __reduce__(self) -> Any:
        return _Stack, ()


@contextmanager
def _marked(data: dict[str, Any], key: str, value: bool) -> Iterator[None]:
    before = data.get(key, False)
    data[key] = before or value
    try:
        yield
    finally:
        data[key] = before


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _running_forwards() -> Iterator[tuple[nn.Module, FrameType]]:
    """The modules whose `forward` is among the calling frames, each with the frame that called it."""
    for frame in _callers():
        caller, code = frame.f_back, frame.f_code
        if code.co_name == "forward" and code.co_argcount and caller is not None:
            module = frame.f_locals.get(code.co_varnames[0])
            if isinstance(module, nn.Module):
                yield module, caller


def _call() -> FrameType | None:
    """The frame of torch's that called the hook which says that a module starts: it lives as long as that runs."""
    return next((frame for frame in _callers() if frame.f_globals.get("__name__") == nn.Module.__module__), None)


@contextmanager
def checkpointed(resumed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Activation checkpointing runs what `resumed` makes of its function, and repeats that in the backward pass, where
    no module is running."""

    def repeating(position: int, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def repeated(*args: Any, **kwargs: Any) -> Any:
            return original(*args[:position], resumed(args[position]), *args[position + 1 :], **kwargs)

        return repeated

    # What `checkpoint` calls, so that it doesn't matter when and how a script imported that.
    with all_wrapped(
        (checkpointing.CheckpointFunction, "forward", partial(repeating, 1)),
        (checkpointing, _WITHOUT_REENTRANT, partial(repeating, 0)),
    ):
        yield


class Scopes:
    """Knows which module is running, tells `listeners` of it, and has the names of all modules of a model. How it
    learns that a forward starts or ends is a subclass's business."""

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
            output = listener.left(frame, output)
        return output

    def _unwind(self) -> None:
        while self._stack.frames:
            self._pop()

    @torch.compiler.assume_constant_result
    def _was_interrupted(self) -> bool:
        """Whether forwards are left over: torch calls hooks for an `Exception` only. Never while a graph is traced."""
        call = self._stack.call
        if call is None:
            return False
        try:
            call.clear()  # Python refuses while it runs; of torch's own nobody misses the variables
        except RuntimeError:
            return False
        return True

    def _kept(self, frame: Frame) -> dict[str, Any]:
        """The data that the frame has where checkpointing repeats what ran in it."""
        return {PLANNED: frame.root.data.get(PLANNED, False)}

    def resumed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What repeats `function` in the scope that it is in now: activation checkpointing does so in the backward
        pass, outside of every module."""
        frame = self.current
        if frame is None:
            return function
        module, name, kept = frame.module, frame.name, self._kept(frame)

        def again(*args: Any, **kwargs: Any) -> Any:
            if (running := self.current) is not None:
                with _marked(running.root.data, REPEATED, not torch.is_grad_enabled()):
                    return function(*args, **kwargs)
            self._open(module, name, **kept)
            try:
                return function(*args, **kwargs)
            finally:
                self._unwind()

        return again


class ModuleScopes(Scopes):
    """Publishes every module's forward through torch's global module hooks, so models may be born anywhere."""

    def __init__(self, names: ModuleNames, only: nn.Module | None = None) -> None:
        """`only` limits the scopes to one model's modules; by default every module counts."""
        super().__init__()
        self.names = names
        self._only = None if only is None else ref(only)
        self._counted = by_module()
        self.raised_in: str | None = None
        self.bypassed: dict[ModuleName, tuple[str, int]] = {}
        """Modules that train, whose forward somebody called instead of them, past all hooks; and where."""
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
                # remove() forgets this mark, and torch.compile would warn of a global hook ever after
                stack.callback(hooks._global_forward_hooks_with_kwargs.pop, handle.id, None)
            stack.callback(self._unwind)
            yield self

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.jit.is_tracing() or not self._counts(module):  # a graph to be drawn or exported is no training
            return
        if self._was_interrupted():
            self._unwind()
        if self._stack.frames and self._is_passing(module):
            return
        name = self.names.of(module)
        if not self._stack.frames:
            self.raised_in = None
            if torch.is_grad_enabled():
                self._note_bypassed(module)
        self._open(module, name)

    def _counts(self, module: nn.Module) -> bool:
        if self._only is None:
            return True
        if module not in self._counted:
            model = self._only()
            self._counted[module] = model is not None and any(inner is module for inner in model.modules())
        return bool(self._counted[module])

    def _noting_births(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            if self._stack.frames:
                self._born_inside[module] = True

        return __init__

    def _is_passing(self, module: nn.Module) -> bool:
        """Whether a forward made `module` for itself, as in `nn.LayerNorm(d)(x)`: it is no model that anybody could
        apply a plan to, and what it computes is that forward's."""
        return module in self._born_inside and module not in self.names and find_model(module)[1] in self._born_inside

    def _note_bypassed(self, module: nn.Module) -> None:
        """No forward is known to run; one of an owner of `module` among the callers was called by its name."""
        for owner, caller in _running_forwards():
            if self._counts(owner) and owner is not module and any(inner is module for inner in owner.modules()):
                place = caller.f_code.co_filename, caller.f_lineno
                self.bypassed.setdefault(self.names.of(owner), place)

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
        return self._close(module, output, (args, kwargs))
