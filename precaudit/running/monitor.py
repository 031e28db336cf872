"""Counts steps, keeps losses and times, and stops the script after the wanted number of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch

from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.ownprecision.grad_scaler import scale_by_hand
from precaudit.running.job import OF_OPTIMIZER
from precaudit.tracing.ops import caller_location

_PATIENCE = 3
"""How often a script may catch StopTraining before its process is ended."""
_FEW = 4
"""Most optimizers that losses of one line are separated by."""


class StopTraining(BaseException):
    """Unwinds a script after its last step. No subclass of Exception, so that scripts don't catch it by accident."""


class Stop:
    """Ends a script by raising `StopTraining`. Where a script catches even that and trains on, `leave` ends its process
    after a few attempts."""

    def __init__(self, leave: Callable[[], None] | None) -> None:
        self._leave = leave
        self._asked = 0

    @property
    def asked(self) -> bool:
        return self._asked > 0

    def __call__(self) -> NoReturn:
        self._asked += 1
        if self._leave is not None and self._asked > _PATIENCE:
            self._leave()
        raise StopTraining


class Monitor(TrainingListener, ScopeListener):
    """Counts optimizer steps and the model calls of each, and stops the script at `limit` steps.

    Registered last, so that every other listener has seen a step before it counts. The loss of a step is the mean over
    its backward passes or, where an optimizer's closure evaluates many, the first one.
    """

    def __init__(
        self,
        events: TrainingEvents,
        limit: int,
        progress: Callable[[int, float], None],
        stop: Stop,
        patience: float = math.inf,
    ) -> None:
        """`patience` is how many model calls may pass without a step: a script that skips batches with a non-finite
        loss may never step in low precision."""
        self.steps = 0
        self.backward_calls = 0
        self.optimizer_steps = 0
        self.step_seconds: list[float] = []
        self._events = events
        self._limit = limit
        self._stop = stop
        self._progress = progress
        self._losses: list[torch.Tensor] = []
        self._turns: list[int] = []
        self._of_step: list[torch.Tensor] = []
        self._placed: list[tuple[str, torch.Tensor]] = []
        self._streams: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._optimizers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._taken: list[torch.Tensor] = []
        self._clock: float | None = None
        self._calls: list[int] = []
        self._called = 0
        self._patience = patience

    def entered(self, frame: Frame) -> None:
        """Counts the call of a model, except inside an optimizer step: a closure may evaluate any number of times."""
        self._called += frame.is_outermost and torch.is_grad_enabled() and not self._events.in_step
        if self._called > self._patience:
            self._calls.append(self._called)
            self._called = 0
            self._stop()

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        """Records the loss without a loss scale by hand, which may take other values in another precision."""
        self._clock = self._clock or time.perf_counter()
        losses = [root.detach().float().sum().cpu() / scale_by_hand(root) for root in roots if root is not None]
        loss = torch.stack(losses).sum()
        if not (self._events.in_step and self._of_step):
            self._of_step.append(loss)
            place = caller_location()
            self._placed.append((str(place or ""), loss))

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self.backward_calls += 1

    def gradient_taken(self, outputs: Sequence[torch.Tensor]) -> None:
        """Records the loss of a script that calls torch.autograd.grad and never backward."""
        if self.backward_calls == 0 and len(outputs) == 1 and outputs[0].numel() == 1 and not self._events.in_step:
            value = outputs[0].detach()
            while torch._C._functorch.is_functorch_wrapped_tensor(value):
                value = torch._C._functorch.get_unwrapped(value)
            self._taken.append(value.float().mean().cpu())

    def step_complete(self, optimizer: Any) -> None:
        if self.steps >= self._limit:
            self._stop()
        self.steps += 1
        self.optimizer_steps += optimizer is not None
        losses = self._of_step or self._taken
        number = self._number(optimizer)
        if losses:
            self._losses.append(torch.stack(losses).mean())
            self._turns.append(number)
        for place, loss in self._placed:
            self._streams.setdefault(place, []).append((number, loss))
        self._calls.append(self._called)
        self._of_step, self._placed, self._taken, self._called = [], [], [], 0
        self._tick()
        if self.steps >= self._limit:
            self._stop()

    def _number(self, optimizer: Any) -> int:
        """Optimizers are numbered from 1 in the order of their first steps; 0 is a step without an optimizer."""
        return 0 if optimizer is None else self._optimizers.setdefault(optimizer, len(self._optimizers) + 1)

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._clock is not None:
            self.step_seconds.append(now - self._clock)
        self._clock = now
        self._progress(self.steps, self.step_seconds[-1] if self.step_seconds else 0.0)

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(float(loss) for loss in self._losses)

    @property
    def turns(self) -> tuple[int, ...]:
        """The optimizer of each loss where a few take turns, as a generator's and a discriminator's; else nothing."""
        return tuple(self._turns) if len(set(self._turns)) in range(2, _FEW + 1) else ()

    @property
    def calls(self) -> tuple[int, ...]:
        """Model calls before each step, and after the last one if there were any."""
        return (*self._calls, *([self._called] if self._called else []))

    @property
    def streams(self) -> dict[str, tuple[float, ...]]:
        """The losses of each line that calls backward. Where one line serves a few optimizers, as in a shared function
        for a training step, they are separated by the optimizer that stepped next."""
        found: dict[str, tuple[float, ...]] = {}
        for place, losses in self._streams.items():
            numbers = sorted({number for number, _ in losses})
            if len(numbers) in range(2, _FEW + 1):
                for number in numbers:
                    found[f"{place}{OF_OPTIMIZER}{number}"] = tuple(float(loss) for n, loss in losses if n == number)
            else:
                found[place] = tuple(float(loss) for _, loss in losses)
        return found

    @property
    def counted(self) -> str:
        return "optimizer steps" if self.optimizer_steps or not self.steps else "backward calls"
