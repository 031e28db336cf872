"""Observes what a script's own low precision loses in a run as written: state whose changes are rounded away, sums that
absorb addends, integers that are no longer exact, and gradients that nobody checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from precaudit.execution.rounding import HALVES
from precaudit.histograms.memory import in_transform
from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torch_function import Call, dtype_name, op_name, single_calls, stored, takes_lists, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.casts import NARROWING, OwnCasts
from precaudit.ownprecision.float32 import called_by_precaudit
from precaudit.ownprecision.grad_scaler import FACTOR, multiplied_by
from precaudit.ownprecision.nonfinite import NonFiniteBackward, OwnNonFinite
from precaudit.ownprecision.operations import OwnOperations
from precaudit.ownprecision.overflows import UNINITIALIZED, overflow, overwritten
from precaudit.ownprecision.records import (
    ChangedIntegers,
    Entry,
    LostGradient,
    NonFiniteStep,
    NonFiniteWeight,
    Overflow,
    OwnPrecision,
    RunawayScale,
    TrainedLow,
)
from precaudit.ownprecision.state import State, States, is_plain
from precaudit.ownprecision.sums import OwnSums
from precaudit.tracing.ops import caller_location, script_location, unasked

_EXACT_INTEGERS = 2.0**24
_STORES = NARROWING | {"cat", "stack"}
_RUNAWAY = 2.0**40


class OwnLowPrecision(TorchFunctionMode, TrainingListener):
    """A function mode and training listener; it records `low`, one entry for each place and kind."""

    def __init__(
        self, names: ModuleNames, own: OwnPrecision, current: Callable[[], Frame | None] = lambda: None
    ) -> None:
        """`current` returns the frame of the running forward."""
        super().__init__()
        self._names, self._own = names, own
        self._states, self._operations, self._casts = States(names), OwnOperations(current), OwnCasts()
        self._nonfinite, self._backward = OwnNonFinite(names, current), NonFiniteBackward(current)
        self._sums = OwnSums(names, self._states.module_of, self._look_for_lost)
        self._step = 0
        self._found: dict[tuple[type[Entry], Location | None, str], Entry] = {}
        self._scale = self._first_scale = 0.0
        self._lost = False
        self._stepping = False
        self._gradients: set[int] = set()

    # ---------------------------------------------------------------- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = op_name(func)
        reads = op.startswith("__get") and op != "__getitem__"
        if reads or op in UNINITIALIZED or called_by_precaudit(func) or in_transform():
            return _as_it_is(func, args, kwargs)
        calls = single_calls(func, args, kwargs)
        overflowed = self._has_noted(Overflow)
        with unasked():
            for call in calls if self._gradients else ():
                self._look_for_changed_gradient(call)
            before = [(self._states.before(call), None if overflowed else overwritten(call)) for call in calls]
        result = func(*args, **kwargs)
        results = (result or args[0]) if takes_lists(func) else [result]
        for call, made, known in zip(calls, results, before, strict=False):
            if isinstance(made, torch.Tensor) and (not self._stepping or self._has_low(call, made)):
                self._made(call, made, *known)
        return result

    def _has_low(self, call: Call, result: torch.Tensor) -> bool:
        """Whether an operation involves low tensors, or tensors computed from them, as most of an optimizer's do
        not."""
        with unasked():
            return any(map(self._states.is_of_low, (result, *call.given)))

    def _made(self, call: Call, result: torch.Tensor, states: list[State], before: torch.Tensor | None) -> None:
        # Operations that can't be examined or repeated in float32 are ignored.
        with unasked(), torch.no_grad(), suppress(RuntimeError, TypeError, ValueError):
            self._states.made(call, result)
            plain = is_plain(result)
            low = plain and result.dtype in HALVES
            if plain:
                self._casts.made(call, result)
            self._backward.made(call, result)
            if not bool(result.isfinite().all()):
                self._nonfinite.made(call, result, before)
                if not self._stepping:
                    self._look_for_lost_weight(call, result)
                if low:
                    self._look_for_overflow(call, result, before)
            if low:
                self._look_for_integers(call, result)
                self._operations.made(call, result, before, self._stepping)
                self._sums.made(call, result)
                self._states.after(call, result, states)

    def _note(self, entry: Entry) -> None:
        self._found.setdefault((type(entry), entry.place, getattr(entry, "fqn", "")), entry)
        self._publish()

    def _has_noted(self, kind: type[Entry]) -> bool:
        """Whether there is an entry of this kind already: of some the first is enough, as later ones may follow from
        it."""
        return any(isinstance(entry, kind) for entry in self._found.values())

    def _publish(self) -> None:
        kept = (self._sums, self._states, self._operations, self._casts, self._nonfinite, self._backward)
        self._own.low = [*self._found.values(), *(entry for each in kept for entry in each.entries())]

    # ---------------------------------------------------------------- one operation

    def _look_for_integers(self, call: Call, result: torch.Tensor) -> None:
        """Integers above 2^p, with p the precision, that a cast changes, or that are created in a low format."""
        if call.op == "arange":
            self._compare_integers(call.func(*call.args, **{**call.kwargs, "dtype": torch.float64}), result)
        for source in tensors_in(call.args) if call.op in _STORES else ():
            if source.dtype in HALVES or source.dtype == torch.bool or source.numel() < 2:
                continue
            if source.shape != result.shape or source.is_complex() or source.requires_grad:
                continue
            self._compare_integers(source.detach().double(), result)

    def _compare_integers(self, values: torch.Tensor, result: torch.Tensor) -> None:
        limit = 2.0 / torch.finfo(result.dtype).eps
        large = (values.abs() > limit) & (values.abs() < _EXACT_INTEGERS)
        whole = large & (values == values.round())
        changed = int((whole & (result.double() != values)).sum())
        if changed > 1 and int(whole.sum()) > 0.9 * int(large.sum()):
            top = float(values[whole].abs().max())
            self._note(ChangedIntegers(caller_location(), dtype_name(result.dtype), limit, top, changed))

    def _look_for_overflow(self, call: Call, result: torch.Tensor, before: torch.Tensor | None) -> None:
        if not self._has_noted(Overflow) and (top := overflow(call, result, before)) is not None:
            dtype = dtype_name(result.dtype)
            self._note(Overflow(caller_location(), dtype, call.op, top, self._step, in_place=call.writes))

    def _look_for_lost_weight(self, call: Call, result: torch.Tensor) -> None:
        """Non-finite values that the script itself adds to a weight, as an adversarial perturbation: no scaler skips
        them."""
        if self._has_noted(NonFiniteWeight) or not isinstance(result, torch.nn.Parameter) or not call.writes:
            return
        added = [t for t in tensors_in((call.args[1:], call.kwargs)) if t.is_floating_point()]
        if not all(bool(t.isfinite().all()) for t in added):
            self._note(NonFiniteWeight(caller_location(), self._states.module_of(result), call.op, self._step))

    def _look_for_changed_gradient(self, call: Call) -> None:
        """Where the script itself first writes to a gradient, or puts another in its place, after a backward pass."""
        target = call.target
        if getattr(call.func, "__self__", None) is torch.Tensor.grad:
            target = target.grad if call.args[-1] is not None else None
        elif not call.writes:
            return
        if isinstance(target, torch.Tensor) and is_plain(target) and target.data_ptr() in self._gradients:
            self._own.changes_gradients = script_location()
            self._gradients = set()

    # ---------------------------------------------------------------- training

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        if self._nonfinite.loss(roots, self._step):
            self._publish()  # there may be no further step
        self._scale = max(map(_factor, roots), default=0.0)
        self._lost = not all(bool(stored(root).isfinite().all()) for root in roots)
        self._backward.backward_starts(not self._lost, self._scale, self._step)
        self._first_scale = self._first_scale or self._scale
        if self._scale >= _RUNAWAY:
            begins = self._first_scale >= _RUNAWAY
            self._note(RunawayScale(caller_location(), min(self._scale, 2.0**127), self._step, begins))
        self._sums.backward_starts()

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        if self._backward.entries():
            self._publish()  # there may be no step at all
        if self._scale > 1 and not self._lost and not any(hasattr(root, FACTOR) for root in roots):
            self._look_for_lost_by_hand()
        if self._own.changes_gradients is None:
            gradients = (p.grad for p in self._names.parameters() if p.grad is not None)
            self._gradients = {gradient.data_ptr() for gradient in gradients if is_plain(gradient)}

    def _look_for_lost(self, fqn: str, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """A gradient that overflowed, which the script may skip, or replace by zeros."""
        if self._has_noted(LostGradient) or bool(gradient.isfinite().all()):
            return
        module, dtype = fqn.rpartition(".")[0], dtype_name(parameter.dtype)
        self._note(LostGradient(caller_location(), module, dtype, self._step, self._scale))

    def _look_for_lost_by_hand(self) -> None:
        """Gradients of float32 weights that overflowed inside autocast, under a loss scale that the script keeps."""
        for model in self._names.models.values() if not self._has_noted(LostGradient) else ():
            for fqn, parameter in model.named_parameters():
                if parameter.grad is not None and parameter.dtype not in HALVES:
                    self._look_for_lost(fqn, parameter, stored(parameter.grad))

    def gradients_ready(self, optimizer: Any) -> None:
        self._stepping = True
        self._gradients = set()
        self._sums.gradients_ready()
        if optimizer is None:
            return
        self._states.optimizers.add(optimizer)
        stepped = [p for p in parameters_of(optimizer) if p.grad is not None]
        if any(p.dtype in HALVES for p in stepped):
            self._found.setdefault((TrainedLow, None, ""), TrainedLow(None))
        if self._lost or self._own.grad_scaler or 0 < self._scale < 1:
            return  # the loss itself is non-finite; or a scaler, disabled or below one, skips such steps
        bad = [p for p in stepped if not bool(stored(p.grad).isfinite().all())]
        if bad and not self._has_noted(NonFiniteStep):
            self._note(NonFiniteStep(caller_location(), self._states.module_of(bad[0]), self._step, len(bad)))

    def step_ended(self, optimizer: Any) -> None:
        self._stepping = False

    def step_complete(self, optimizer: Any) -> None:
        self._states.step_ended()
        self._operations.step_ended()
        self._step += 1
        self._publish()


def _as_it_is(operation: Any, args: Any, kwargs: Any) -> Any:
    """Calls the operation in a frame of precaudit, by which `called_by_precaudit` knows that the call isn't the
    script's."""
    return operation(*args, **kwargs)


def _factor(root: torch.Tensor) -> float:
    """The loss scale of a root of a backward pass: its scaler's, or the script's own factor."""
    factor: float = getattr(root, FACTOR, None) or multiplied_by(root)
    return factor
