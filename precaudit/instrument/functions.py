"""Functions with a backward pass of their own (`torch.autograd.Function`), which runs where no module does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache, partial
from inspect import getclosurevars
from typing import Any

from torch.autograd.function import BackwardCFunction, Function

from precaudit.instrument.patches import wrapped
from precaudit.instrument.scopes import Frame, ModuleScopes
from precaudit.instrument.torchfunction import tensors_in

AROUND_BACKWARD = "around_backward"
"""In an outermost frame's data: given a frame inside it, what a backward pass that torch's `custom_bwd` runs in its
forward's autocast state has to run in."""
Around = Callable[[Frame], AbstractContextManager[Any]]


class OwnBackward:
    """`running` is the module, and the function, whose own backward pass is running or let an error through."""

    def __init__(self, scopes: ModuleScopes) -> None:
        self.running: tuple[str, str] | None = None
        self._scopes = scopes
        self._entered: list[ExitStack] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        with wrapped(Function, "apply", self._applying):
            yield

    def _applying(self, original: Any) -> Any:
        function = getattr(original, "__func__", original)

        def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
            result = function(cls, *args, **kwargs)
            frame = self._scopes.current
            if frame is not None and cls.__module__.partition(".")[0] != "torch":
                self._follow(cls, frame, result)
            return result

        return classmethod(apply)

    def _follow(self, cls: type[Function], frame: Frame, result: Any) -> None:
        node = next((t.grad_fn for t in tensors_in(result) if isinstance(t.grad_fn, BackwardCFunction)), None)
        if node is None:
            return
        around = frame.root.data.get(AROUND_BACKWARD) if _keeps_autocast(cls) else None
        context = around(frame) if around is not None else None
        where = f"{frame.name.model}:{frame.name.fqn}", cls.__name__
        node.register_prehook(partial(self._starts, where, context))
        node.register_hook(self._ended)

    def _starts(self, where: tuple[str, str], context: AbstractContextManager[Any] | None, gradients: Any) -> None:
        """Where the pass raises, torch calls no other hook, and takes the modes off itself."""
        self.running = where
        self._entered.append(stack := ExitStack())
        if context is not None:
            stack.enter_context(context)

    def _ended(self, *gradients: Any) -> None:
        self.running = None
        if self._entered:
            self._entered.pop().close()


@lru_cache(maxsize=256)
def _keeps_autocast(cls: type[Function]) -> bool:
    """Whether torch's decorators run both passes in the autocast around the forward."""
    forward, backward = (getclosurevars(getattr(cls, name)).nonlocals for name in ("forward", "backward"))
    return "fwd" in forward and forward.get("cast_inputs") is None and "bwd" in backward
