"""Low-precision state that persists over the steps of a script's own training, and how much of its changes is lost.

Each change of a state is repeated in float32 from its value at the start of the step: `lost` is the energy (sum of
squares) of the difference relative to that of the exact change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from precaudit.execution.kernels import to_float32
from precaudit.execution.rounding import HALVES
from precaudit.instrument.names import ModuleNames, fqns_of
from precaudit.instrument.torch_function import FUSED, Call, dtype_name, energy, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.casts import NARROWING
from precaudit.ownprecision.records import Entry, StateLoss, VainDecay
from precaudit.tracing.ops import script_location

_CHANGES = frozenset("add sub mul div lerp addcmul addcdiv copy neg index_add scatter_add scatter_reduce".split())
_HANDS_ON = frozenset({"detach", "clone"})
_NORMALIZES = frozenset("batch_norm instance_norm".split())
_MOST = 200
_NOTHING = 2.0**-16
"""Energy of an exact value, relative to the stored one's, below which it is zero but for float32's own rounding."""
_KEPT = 0.1
"""Share of what a sum has lost that its remainder, rounded itself, may lack."""
_CYCLE = 5
"""States are followed in three of every five steps that change them (not every step does: an average may be updated in
every tenth): one to recognize a state, two to measure."""

Key = tuple[Any, ...]
Owner = tuple[str | None, str | None, str]
"""The model and module of a tensor, and the name of the buffer or optimizer state; '' for a parameter. The states of a
weight that belongs to no module have but a name."""
_NOBODY: Owner = (None, None, "")


@dataclass
class _Loss:
    """Energies of the changes at one place and of their losses; `times` counts the changes."""

    dtype: str
    change: float = 0.0
    lost: float = 0.0
    times: int = 0


@dataclass
class _Decay:
    """A factor so close to one that it changes no value of the dtype, and how often it was applied."""

    dtype: str
    factor: float
    times: int = 0


@dataclass
class State:
    """A low tensor within one step: its value at the start of the step, the exact and the stored current value, and the
    line that changed it last."""

    tensor: torch.Tensor
    start: torch.Tensor
    exact: torch.Tensor
    stored: torch.Tensor
    owner: Owner | None
    place: Location | None = None

    @property
    def module(self) -> tuple[str | None, str | None] | None:
        """Its owner's model and module."""
        return self.owner[:2] if self.owner else None

    @property
    def is_remainder(self) -> bool:
        """Whether it would be zero without rounding: it holds what another state has lost."""
        return energy(self.exact) < _NOTHING * energy(self.stored)

    def is_kept_by(self, other: State) -> bool:
        """Whether another state of the same module is what rounding has changed this one by, added or subtracted."""
        if other is self or other.stored.shape != self.stored.shape or other.module != self.module:
            return False
        lost, kept = self.stored.float() - self.exact, other.stored.float()
        return min(energy(lost - kept), energy(lost + kept)) < _KEPT * energy(lost)


@dataclass
class _History:
    """The history of a low result: the step that computed it, the state it was computed from, and its exact value."""

    step: int
    start: torch.Tensor | None
    exact: torch.Tensor
    stored: torch.Tensor
    place: Location | None
    settled: bool = False


class States:
    """Observes every operation of a run as written, before and after it runs, and the ends of steps."""

    def __init__(self, names: ModuleNames) -> None:
        self.optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._names = names
        self._step = 0
        self._now: dict[Key, State] = {}
        self._carried: dict[Key, torch.Tensor] = {}
        self._rounded: dict[Key, torch.Tensor] = {}
        self._turns: dict[Key, tuple[int, int]] = {}
        self._losses: dict[tuple[Location | None, Owner | None], _Loss] = {}
        self._decays: dict[tuple[Location | None, Owner | None], _Decay] = {}
        self._owners: dict[Key, Owner] | None = None
        # Not attributes of tensors: the script may save a tensor, and load it with weights_only.
        self._histories = WeakTensorKeyDictionary()
        self._made_from = WeakTensorKeyDictionary()

    def before(self, call: Call) -> list[State]:
        """The states that an operation will change."""
        if len(self._now) > _MOST:
            return []
        if call.op == "copy" and call.writes:
            self._written_over(*tensors_in(call.args)[:2])
        targets = [target for target in _targets(call) if self._is_followed(_key(target))]
        if call.op == "copy" and targets:
            key = _key(targets[0])
            if not any(key in self._origins(t) for t in tensors_in((call.args[1:], call.kwargs))):
                # A fresh value, such as that of a float32 master weight, has absorbed nothing.
                self._now.pop(key, None)
                return []
        return [self._state(target) for target in targets]

    def after(self, call: Call, result: torch.Tensor, states: list[State]) -> None:
        if call.writes and (history := self._histories.pop(result, None)) is not None:
            self._rewritten(call, result, history)
        if states:
            self._changed(call, states)
            if call.op == "mul" and (factor := _vain_factor(call.args, states[0].tensor)) is not None:
                owner = states[0].owner
                decay = self._decays.setdefault((states[0].place, owner), _Decay(dtype_name(result.dtype), factor))
                decay.times += 1
        elif call.op in _CHANGES and not result.requires_grad:
            self._derived(call, result)
        elif call.op in NARROWING and not call.writes:
            self._cast(call.given[0], result)
        elif call.op in _HANDS_ON and (history := self._histories.get(call.given[0])) is not None:
            self._histories[result] = history

    def _written_over(self, target: torch.Tensor, source: torch.Tensor | None = None) -> None:
        """A float32 weight that is overwritten by its own rounded value (as by a checkpoint in half, or the master of
        a low weight by that weight) was stored in half in between."""
        if source is None or target.dtype != torch.float32 or not is_plain(target) or target.shape != source.shape:
            return
        low = next(iter(self._origins(source)), None)
        if low is None:
            self._rounded.pop(_key(target), None)  # its own saved value is restored: nothing is lost
            return
        if (owner := self.owner(target) or self._owner_at(low)) is None:
            return
        value = target.detach().clone()
        stored = value.to(low[-1])
        if not torch.equal(stored, source.detach().to(stored)):
            return
        before = self._rounded.get(_key(target))
        if before is not None and not torch.equal(before, value):
            self._lost(script_location(), owner, stored, value, before)
        self._rounded[_key(target)] = stored.float()

    def made(self, call: Call, result: torch.Tensor) -> None:
        """Remember until the end of the step from which low tensors a result was computed, in whatever dtype."""
        if not result.requires_grad:
            origins = (self._origins(t) for t in call.given if t.shape == result.shape)
            if found := frozenset[Key]().union(*origins):
                self._made_from[result] = found

    def _is_followed(self, key: Key) -> bool:
        """Whether the state is followed in this step, by the number of steps that have changed it."""
        turn, step = self._turns.get(key, (-1, -1))
        if step != self._step:
            turn += 1
            self._turns[key] = turn, self._step
        return turn % _CYCLE >= _CYCLE - 3

    def is_of_low(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is low, or computed from low tensors."""
        return _is_low(tensor) or tensor in self._made_from

    def _origins(self, tensor: torch.Tensor) -> frozenset[Key]:
        own = {_key(tensor)} if _is_low(tensor) else ()
        return frozenset(own) | self._made_from.get(tensor, frozenset())

    def _state(self, tensor: torch.Tensor) -> State:
        known = self._now.get(_key(tensor))
        if known is not None and torch.equal(known.stored, tensor.detach()):
            known.tensor = tensor
            return known
        value = tensor.detach().float()
        state = State(tensor, value, value.clone(), tensor.detach().clone(), self.owner(tensor))
        self._now[_key(tensor)] = state
        return state

    def _changed(self, call: Call, states: list[State]) -> None:
        """Repeat the operation in float32, on the exact values of what it changes."""
        changing = {id(state.tensor): state.exact for state in states}

        def exact(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [exact(item) for item in value]
            return changing[id(value)] if id(value) in changing else self._exact(value)

        call.func(*map(exact, call.args), **{key: exact(value) for key, value in call.kwargs.items()})
        for state in states:
            state.stored, state.place = state.tensor.detach().clone(), script_location()

    def _derived(self, call: Call, result: torch.Tensor) -> None:
        """Handles `average = average * decay + ...`: the result may be the state of the next step."""
        if not self._following or call.writes:
            return
        old = [t for t in tensors_in(call.args) if t.dtype in HALVES and t.shape == result.shape]
        named = {key: self._exact(value) for key, value in call.kwargs.items()}
        exact = call.func(*map(self._exact, call.args), **named)
        self._begin(result, exact, [history for t in old if (history := self._histories.get(t)) is not None])

    def _cast(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Handles `state = (state.float() + ...).to(state.dtype)`: what is computed from a state in float32 is exact
        before it is cast back."""
        origins = self._made_from.get(source, frozenset())
        if origins and source.dtype == torch.float32 and source.shape == result.shape:
            histories = [history for tensor, history in self._histories.items() if _key(tensor) in origins]
            self._begin(result, source.detach(), histories)

    def _begin(self, result: torch.Tensor, exact: torch.Tensor, histories: list[_History]) -> None:
        """Begin the history of a result; `histories` are those of what it was computed from."""
        begun = [history for history in histories if history.step == self._step and history.start is not None]
        ended = [history for history in histories if history.step == self._step - 1]
        for history in ended if self._measuring else ():
            self._settle(history)
        start = begun[0].start if begun else ended[0].stored.float() if ended else None
        self._histories[result] = _History(self._step, start, exact, result.detach(), script_location())

    def _rewritten(self, call: Call, result: torch.Tensor, history: _History) -> None:
        """Handles `average = average * decay; average += ...`: the exact value changes too. What isn't repeated (a
        sign, a draw of random numbers) leaves a result without a history."""
        if history.step == self._step and call.op in _CHANGES and "out" not in call.kwargs:
            exact = history.exact.clone()
            call.func(exact, *map(self._exact, call.args[1:]), **{k: self._exact(v) for k, v in call.kwargs.items()})
            self._histories[result] = replace(history, exact=exact, stored=result.detach(), place=script_location())

    def _settle(self, history: _History) -> None:
        """A result that is read in the next step is a state."""
        if history.start is not None and not history.settled:
            history.settled = True
            self._lost(history.place, None, history.stored, history.exact, history.start)

    def _lost(
        self,
        place: Location | None,
        owner: Owner | None,
        stored: torch.Tensor,
        exact: torch.Tensor,
        start: torch.Tensor,
    ) -> None:
        change, lost = energy(exact - start), energy(stored.float() - exact)
        if math.isfinite(change + lost):
            loss = self._losses.setdefault((place, owner), _Loss(dtype_name(stored.dtype)))
            loss.change, loss.lost, loss.times = loss.change + change, loss.lost + lost, loss.times + 1

    def _exact(self, value: Any) -> Any:
        """The value that a low tensor would have if this step had been exact so far."""
        history = self._histories.get(value) if isinstance(value, torch.Tensor) else None
        return history.exact if history is not None and history.step == self._step else to_float32(value)

    def owner(self, tensor: torch.Tensor) -> Owner | None:
        """The owner of a parameter, buffer or optimizer state; None for any other tensor."""
        return self._owner_at(_key(tensor))

    def _owner_at(self, key: Key) -> Owner | None:
        if self._owners is None:
            self._owners = {_key(own): owner for owner, own in reversed([*self._owned()])}
        return self._owners.get(key)

    def module_of(self, tensor: torch.Tensor) -> str:
        _, fqn, _ = self.owner(tensor) or _NOBODY
        return fqn or ""

    def _owned(self) -> Iterator[tuple[Owner, torch.Tensor]]:
        modules: dict[int, tuple[str, str]] = {}
        for called, model in self._names.models.items():
            for module, fqn in fqns_of(model).items():
                for parameter in module.parameters(recurse=False):
                    yield (*modules.setdefault(id(parameter), (called, fqn)), ""), parameter
                for name, buffer in module.named_buffers(recurse=False):
                    yield (called, fqn, name), buffer
        for stepped, state in [item for optimizer in self.optimizers for item in optimizer.state.items()]:
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    yield (*modules.get(id(stepped), _NOBODY[:2]), str(name)), value

    def step_ended(self) -> None:
        """End a step. Changes after the optimizer's step, such as an average's update, belong to the next one."""
        for key, state in self._now.items():
            before = self._carried.pop(key, None)
            carried = before is not None and torch.equal(before, state.start.to(before.dtype))
            if carried and not (state.is_remainder or any(map(state.is_kept_by, self._now.values()))):
                self._lost(state.place, state.owner, state.stored, state.exact, state.start)
            self._carried[key] = state.stored
        self._step += 1
        for key in list(self._carried)[:-_MOST]:
            del self._carried[key]
        self._now = {}
        self._made_from.clear()
        self._owners = None  # what is freed may leave its address to another's tensor

    def entries(self) -> list[Entry]:
        """States that changed at least twice, one entry for each place and owner."""
        lost = [
            StateLoss(place, *(owner or _NOBODY), loss.dtype, loss.lost / loss.change)
            for (place, owner), loss in self._losses.items()
            if loss.change > 0 and loss.times >= 2
        ]
        vain = [
            VainDecay(place, *(owner or _NOBODY), decay.dtype, decay.factor)
            for (place, owner), decay in self._decays.items()
            if decay.times >= 2
        ]
        return [*lost, *vain]

    @property
    def _following(self) -> bool:
        return self._step % _CYCLE >= _CYCLE - 3

    @property
    def _measuring(self) -> bool:
        return self._step % _CYCLE == _CYCLE - 1


def _vain_factor(args: Any, state: torch.Tensor) -> float | None:
    """A scalar factor whose effect is less than half a unit in the last place of any value."""
    factor = args[1] if len(args) > 1 else None
    if isinstance(factor, float) and 0 < abs(1 - factor) <= torch.finfo(state.dtype).eps / 4:
        return factor
    return None


def _targets(call: Call) -> list[torch.Tensor]:
    """The low tensors that an operation changes in place."""
    if call.op in _NORMALIZES:  # its running statistics; frozen weights look alike, but never change
        return [t for t in call.given if t.dim() == 1 and not t.requires_grad and _is_low(t)]
    if call.op in FUSED:
        if call.kwargs.get("grad_scale") is not None:
            return []  # it unscales gradients in place, so that the call can't be repeated
        parameters, _, *states = call.args
        return [t for t in tensors_in((parameters, states)) if _is_low(t)]
    target = call.args[0] if call.args else None
    if call.op not in _CHANGES or "out" in call.kwargs or not call.writes or not isinstance(target, torch.Tensor):
        return []
    return [target] if _is_low(target) else []


def _is_low(tensor: torch.Tensor) -> bool:
    return tensor.dtype in HALVES and is_plain(tensor)


def is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0 and tensor.device.type != "meta"


def _key(tensor: torch.Tensor) -> Key:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype
