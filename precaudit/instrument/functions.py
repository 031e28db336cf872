"""Custom autograd functions (`torch.autograd.Function`), whose backward pass runs outside of every module, and the
effect of torch's autocast decorators on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache, partial
from inspect import getclosurevars
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction, Function
from torch.autograd.graph import Node

from precaudit.instrument.patches import replaced
from precaudit.instrument.scopes import Frame, ModuleScopes
from precaudit.instrument.torch_function import map_tensors, tensors_in

AROUND_BACKWARD = "around_backward"
"""Key in an outermost frame's data: a function from a frame to the context that its backward pass needs where torch's
`custom_bwd` restores the autocast state of the forward pass."""
IN_FUNCTION = "in_function"
"""Key in a frame's data while a custom function's forward, which torch runs without gradients, is part of training."""
IN_FLOAT32 = "in_float32"
"""Key in a frame's data: whether a plan of low precision runs the module's operations in float32."""


class OwnBackward:
    """Tracks custom backward passes. `running`: the module and function whose backward pass is running, or has
    raised."""

    def __init__(
        self, scopes: ModuleScopes, disabled_region: Callable[[], AbstractContextManager[None]], planned: bool
    ) -> None:
        """`disabled_region` opens a region with autocast disabled; `planned` says that half values are a plan's."""
        self.running: tuple[str, str] | None = None
        self._scopes, self._disabled_region, self._planned = scopes, disabled_region, planned
        self._entered: list[ExitStack] = []

    def installed(self) -> AbstractContextManager[None]:
        return _applied_by(self._apply)

    def _apply(self, apply: Callable[..., Any], cls: type[Function], args: Any, kwargs: Any) -> Any:
        frame = self._scopes.current
        if frame is None or cls.__module__.partition(".")[0] == "torch":
            return apply(*args, **kwargs)
        with ExitStack() as stack:
            if torch.is_grad_enabled():
                frame.data[IN_FUNCTION] = True
                stack.callback(frame.data.pop, IN_FUNCTION)
            if _asks_for_float32(cls):
                stack.enter_context(self._disabled_region())
                args = map_tensors(self._asked, args)
            elif frame.data.get(IN_FLOAT32):
                args = map_tensors(_widened, args)
            result = apply(*args, **kwargs)
        self._follow(cls, frame, result)
        return result

    def _asked(self, tensor: torch.Tensor) -> torch.Tensor:
        """An operand that a function has asked for in float32. The call of `float` shows an audit that it is wide."""
        return _widened(tensor) if self._planned else tensor.float() if tensor.dtype == torch.float32 else tensor

    def _follow(self, cls: type[Function], frame: Frame, result: Any) -> None:
        if (node := _node(result)) is not None:
            where = f"{frame.name.model}:{frame.name.fqn}", cls.__name__
            node.register_prehook(partial(self._starts, where, _around_backward(cls, frame)))
            node.register_hook(self._ended)

    def _starts(self, where: tuple[str, str], context: AbstractContextManager[Any] | None, gradients: Any) -> None:
        """Enter the contexts of a backward pass. Where it raises, torch calls no further hook and removes modes
        itself."""
        self.running = where
        self._entered.append(stack := ExitStack())
        if context is not None:
            stack.enter_context(context)

    def _ended(self, *gradients: Any) -> None:
        self.running = None
        if self._entered:
            self._entered.pop().close()


def widening(
    frames: Callable[[], Iterable[Frame | None]], disabled_region: Callable[[Frame], AbstractContextManager[None]]
) -> AbstractContextManager[None]:
    """Custom functions that are called where a plan runs a module in float32, or that ask for float32 themselves, get
    their operands in float32, and so keep them for their backward pass. Where torch's decorators restore autocast for
    that pass, a plan that is emulated is restored. `frames`: the frames that are running; `disabled_region` opens a
    region with autocast disabled in one."""

    def widened(apply: Callable[..., Any], cls: type[Function], args: Any, kwargs: Any) -> Any:
        planned = [frame for frame in frames() if frame is not None and IN_FLOAT32 in frame.data]
        asks = bool(planned) and _asks_for_float32(cls)
        with ExitStack() as stack:
            for frame in planned if asks else ():
                stack.enter_context(disabled_region(frame))
            wide = asks or any(frame.data[IN_FLOAT32] for frame in planned)
            result = apply(*(map_tensors(_widened, args) if wide else args), **kwargs)
        for frame in planned:
            if (node := _node(result)) and (context := _around_backward(cls, frame)):
                _enter_around(node, context)
        return result

    return _applied_by(widened)


def _applied_by(around: Callable[..., Any]) -> AbstractContextManager[None]:
    """In this block `cls.apply` of a custom function becomes `around(apply, cls, args, kwargs)`."""

    def make(original: Any) -> Any:
        def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
            return around(_bound(original, cls), cls, args, kwargs)

        return classmethod(apply)

    return replaced(Function, "apply", make)


def _around_backward(cls: type[Function], frame: Frame) -> AbstractContextManager[Any] | None:
    """The context that the backward pass of a function needs that was called in this frame, if any."""
    around = frame.root.data.get(AROUND_BACKWARD) if _keeps_autocast(cls) else None
    return around(frame) if around is not None else None


def _enter_around(node: Node, context: AbstractContextManager[Any]) -> None:
    """Enter the context around a node of the graph."""

    def starts(gradients: Any) -> None:
        context.__enter__()

    def ended(*gradients: Any) -> None:
        context.__exit__(None, None, None)

    node.register_prehook(starts)
    node.register_hook(ended)


def _node(result: Any) -> Node | None:
    """The node of the graph that a custom function's backward pass is."""
    return next((t.grad_fn for t in tensors_in(result) if isinstance(t.grad_fn, BackwardCFunction)), None)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _bound(apply: Any, cls: type[Function]) -> Callable[..., Any]:
    """`Function.apply` bound to `cls`; since torch 2.14 it is the base class's C function, which can't be rebound."""
    function = getattr(apply, "__func__", None)
    base: Any = super(Function, cls)
    return partial(function, cls) if function is not None else base.apply


def _asks_for_float32(cls: type[Function]) -> bool:
    """Whether torch's decorator gives the forward pass its operands in float32, with autocast disabled."""
    return _decorator(cls.forward, "fwd").get("cast_inputs") is torch.float32


def _keeps_autocast(cls: type[Function]) -> bool:
    """Whether torch's decorators run both passes in the autocast state of the forward pass."""
    forward = _decorator(cls.forward, "fwd")
    return bool(forward and forward["cast_inputs"] is None and _decorator(cls.backward, "bwd"))


@lru_cache(maxsize=256)
def _decorator(function: Any, decorated: str) -> Mapping[str, Any]:
    """The arguments of `torch.amp.custom_fwd` or `custom_bwd` if it has made `function`; else nothing."""
    inside = getclosurevars(function).nonlocals if hasattr(function, "__wrapped__") else {}
    return inside if {decorated, "device_type"} <= set(inside) else {}
