"""Training events of an unmodified script (backward passes and optimizer steps), published to listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from precaudit.instrument.names import callers
from precaudit.instrument.patches import set_to, wrapped
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.instrument.step_group import StepGroup


def in_backward() -> bool:
    """Whether a backward pass is running in this thread, which may be an autograd worker thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def parameters_of(optimizer: Any) -> list[Any]:
    """The parameters that an optimizer updates; none for None or an object that isn't a torch optimizer."""
    return [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]]


class TrainingListener:
    """Interface of listeners; every method does nothing unless overridden.

    `backward_starts` may return replacement gradient arguments (one per root tensor), or None.
    """

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any] | None:
        return None

    def backward_nested(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward pass starts inside another one, as reentrant checkpointing starts for its recomputed part."""

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None: ...

    def gradient_nested(self, running: bool) -> None:
        """`torch.autograd.grad` starts or ends inside a backward pass, as in a custom autograd function."""

    def gradient_starts(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[Any] | None:
        """`torch.autograd.grad` is called outside of any backward pass and without `grad_outputs`, which may be
        returned."""
        return None

    def gradient_taken(self, outputs: Sequence[torch.Tensor]) -> None:
        """`torch.autograd.grad` (and so `torch.func.grad`) was called outside any backward pass."""

    def step_starts(self, optimizer: Any) -> None:
        """`optimizer` is None where the script has no torch optimizer: then every backward pass is a step."""

    def gradients_ready(self, optimizer: Any) -> None:
        """The gradients that a step uses are there: as it starts or, where it has a closure that computes them, once
        that was evaluated for the first time."""

    def step_ended(self, optimizer: Any) -> None: ...

    def step_complete(self, optimizer: Any) -> None:
        """All optimizers that use the same gradients have stepped, `optimizer` as the first. Steps are counted here."""


def _steps_running() -> list[FrameType]:
    """The stack frames of running optimizer steps, innermost first: torch's frames that call step hooks."""
    return [frame for frame in callers() if frame.f_globals.get("__name__") == Optimizer.__module__]


def _as_list(value: Any) -> list[Any]:
    """A list of what torch accepts as one object or several: tensors, gradients, or graph edges."""
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.values())
    return [value] if isinstance(value, torch.Tensor | GradientEdge) else list(value)


def _held(value: Any) -> Any:
    """A re-iterable copy of an iterator such as `model.parameters()`."""
    return list(value) if isinstance(value, Iterator) else value


class _Here(threading.local):
    """`handed_on`: torch forwards a call to itself in this thread, once for each active function mode, by the name that
    is wrapped here."""

    handed_on = False


class TrainingEvents(ScopeListener):
    """Publishes backward passes and optimizer steps.

    Without any torch optimizer a script updates its parameters by hand: its steps are its backward passes or, without
    those, its calls of `torch.autograd.grad`. Nothing here is compiled as part of a compiled step.
    """

    def __init__(self, has_optimizer: bool = False, concerns: Callable[[Any], bool] = lambda optimizer: True) -> None:
        """`concerns` says whether an optimizer counts, as opposed to those of other models."""
        self.listeners: list[TrainingListener] = []
        self.has_optimizer = has_optimizer
        self._concerns = concerns
        self._calls_backward = False
        self._here = _Here()
        self._stepping: list[FrameType] = []
        self._group = StepGroup()
        self._by_own_gradients = False

    @property
    def in_step(self) -> bool:
        """Whether an optimizer's `step` is running: a closure is being evaluated."""
        return bool(self._stepping)

    @contextmanager
    def installed(self) -> Iterator[TrainingEvents]:
        with ExitStack() as stack:
            stack.enter_context(wrapped(torch.autograd, "backward", self._backward))
            stack.enter_context(wrapped(torch.autograd, "grad", self._grad))
            stack.enter_context(wrapped(Optimizer, "__init__", self._created))
            for handle in (
                register_optimizer_step_pre_hook(self._step_starts),
                register_optimizer_step_post_hook(self._step_ended),
            ):
                stack.callback(handle.remove)
            yield self

    def _backward(
        self, original: Callable[..., None], tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        tensors, grad_tensors = _held(tensors), _held(grad_tensors)
        roots = _as_list(tensors)
        if in_backward():
            for listener in self.listeners:
                listener.backward_nested(roots)
            return original(tensors, grad_tensors, *args, **kwargs)
        if self._here.handed_on or any(isinstance(root, GradientEdge) for root in roots):
            return original(tensors, grad_tensors, *args, **kwargs)  # a GradientEdge has no loss tensor
        self._calls_backward = True
        self._gradients_are_new()
        gradients = _as_list(grad_tensors) or [None] * len(roots)
        for listener in self.listeners:
            gradients = listener.backward_starts(roots, gradients) or gradients
        with set_to(self._here, "handed_on", True):
            original(roots, gradients, *args, **kwargs)
        for listener in self.listeners:
            listener.backward_ended(roots)
        if not self.has_optimizer:
            self._publish_step()
        elif self._group.are_all:  # they have stepped in hooks of the backward pass
            self.complete()
        return None

    def know(self, optimizer: Any) -> None:
        """Register an optimizer."""
        self.has_optimizer = True
        self._group.know(optimizer)

    def _publish_step(self) -> None:
        """Publish a step without an optimizer."""
        for listener in self.listeners:
            listener.step_starts(None)
        self._publish_ready(None)
        for listener in self.listeners:
            listener.step_ended(None)
        self._publish_complete(None)

    def _publish_ready(self, optimizer: Any) -> None:
        for listener in self.listeners:
            listener.gradients_ready(optimizer)

    def _announcing(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        """The closure of a step, whose first evaluation is published."""
        waiting = [optimizer]

        def evaluated() -> Any:
            result = closure()
            if waiting:
                self._publish_ready(waiting.pop())
            return result

        return evaluated

    def _publish_complete(self, optimizer: Any) -> None:
        for listener in self.listeners:
            listener.step_complete(optimizer)

    def complete(self) -> None:
        """End the current step, if there is one: no further optimizer will take part."""
        if (first := self._group.complete()) is not None:
            self._publish_complete(first)

    def _gradients_are_new(self) -> None:
        if self.in_step:  # gradients of a closure belong to this optimizer only
            self._by_own_gradients = True
            return
        self.complete()
        self._group.renew()

    def entered(self, frame: Frame) -> None:
        """Called by module scopes: a forward pass belongs to the next step."""
        if frame.is_outermost and not self.in_step and not in_backward():
            self.complete()

    def _created(self, original: Callable[..., None], optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        original(optimizer, *args, **kwargs)
        if self._concerns(optimizer):
            self.know(optimizer)

    def _grad(
        self,
        original: Callable[..., Any],
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        outputs, inputs = _held(outputs), _held(inputs)
        if in_backward():
            return self._nested_gradient(partial(original, outputs, inputs, grad_outputs, *args, **kwargs))
        if self._here.handed_on:
            return original(outputs, inputs, grad_outputs, *args, **kwargs)
        for listener in self.listeners if grad_outputs is None else ():
            grad_outputs = listener.gradient_starts(_as_list(outputs), _as_list(inputs)) or grad_outputs
        if not self.in_step:
            self._gradients_are_new()
        with set_to(self._here, "handed_on", True):
            result = original(outputs, inputs, grad_outputs, *args, **kwargs)
        for listener in self.listeners:
            listener.gradient_taken(_as_list(outputs))
        if self._updates_by_hand(_as_list(inputs), *args, **kwargs):
            self._publish_step()
        return result

    def _updates_by_hand(
        self, inputs: Sequence[Any], retain_graph: Any = None, create_graph: bool = False, *_: Any, **others: Any
    ) -> bool:
        """Whether the script trains by hand: gradients of parameters, but no optimizer and no call of backward."""
        trains = any(isinstance(each, torch.nn.Parameter) for each in inputs)
        return trains and not create_graph and not self.has_optimizer and not self._calls_backward

    def _nested_gradient(self, compute: Callable[[], Any]) -> Any:
        for listener in self.listeners:
            listener.gradient_nested(True)
        try:
            return compute()
        finally:
            for listener in self.listeners:
                listener.gradient_nested(False)

    @torch.compiler.disable
    def _step_starts(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Publish the start of an outermost step. Steps whose frames are gone have raised, and are forgotten."""
        if not self._concerns(optimizer):
            return None
        self.know(optimizer)
        running = _steps_running()
        self._stepping = [frame for frame in self._stepping if frame in running]
        self._stepping += running[:1]
        if len(self._stepping) > 1:
            return None
        self._by_own_gradients = False
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None or self._group.has(optimizer):
            self.complete()
            self._group.renew()
        for listener in self.listeners:
            listener.step_starts(optimizer)
        if closure is None:
            self._publish_ready(optimizer)
            return None
        announcing = self._announcing(closure, optimizer)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": announcing}
        return (args[0], announcing, *args[2:]), kwargs

    @torch.compiler.disable
    def _step_ended(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Publish the end of an outermost step: an optimizer that wraps another one (SAM, Lookahead) counts as one."""
        if not self._concerns(optimizer):
            return
        if self._stepping:
            self._stepping.pop()
        if self._stepping:
            return
        for listener in self.listeners:
            listener.step_ended(optimizer)
        self._group.add(optimizer)
        if self._by_own_gradients:
            self._by_own_gradients = False
            self._gradients_are_new()
        elif self._group.are_all and not in_backward():
            self.complete()
