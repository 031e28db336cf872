"""What a script's own low precision loses, seen while it runs as written: state whose changes are rounded away, sums
that absorb their addends, whole numbers that become others, and gradients that nobody checked.

A state is a low-precision tensor that lives from step to step. Each change of it is repeated in float32 from the value
that it had when the step began: `lost` is the energy of the difference over the energy of the exact change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from precaudit.execution.emulated import to_float32
from precaudit.histograms.memory import in_transform
from precaudit.instrument.events import TrainingListener
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.torchfunction import op_name, tensors_in, writes
from precaudit.model import Location
from precaudit.running.baseline import called_by_precaudit
from precaudit.running.ownscaler import FACTOR
from precaudit.tracing.ops import caller_location

_HALVES = (torch.float16, torch.bfloat16)
_EXACT_INTEGERS = 2.0**24
_CASTS = frozenset("to half bfloat16 type type_as copy cat stack".split())
_READS_ROWS = frozenset("embedding index_select __getitem__".split())
_CHANGES = frozenset("add sub mul div lerp addcmul addcdiv copy neg".split())
_MASKS = frozenset("masked_fill where full full_like new_full masked_scatter scatter index_fill fill".split())
_MOST = 200
_RUNAWAY = 2.0**40
_LIFE = "precaudit_life"
_CYCLE = 5
"""States are followed through three steps of every five: two to know them by, one to measure."""


@dataclass
class _Loss:
    """Energies of what a place changed and of what was lost of it; `steps` counts how often."""

    dtype: str
    change: float = 0.0
    lost: float = 0.0
    times: int = 0


@dataclass
class _State:
    """A low tensor within one step: its value when the step began, the exact value now, the stored one, and the line
    that changed it last."""

    start: torch.Tensor
    exact: torch.Tensor
    stored: torch.Tensor
    owner: str
    place: Location | None = None


@dataclass
class _Life:
    """On a low result: the step it was made in, the state it was made from, and its exact value."""

    step: int
    start: torch.Tensor | None
    exact: torch.Tensor
    stored: torch.Tensor
    place: Location | None
    settled: bool = False


@dataclass
class _Sum:
    """The float32 sum of a parameter's gradients, and what its `.grad` held when the last of them was added: a script
    may clip that, or hand it to a master copy, before the step."""

    exact: torch.Tensor
    stored: torch.Tensor | None = None


def _energy(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


class OwnLowPrecision(TorchFunctionMode, TrainingListener):
    """A function mode and a training listener; what it saw goes into `settings["low"]`, one entry a place and kind."""

    def __init__(self, names: ModuleNames, settings: dict[str, object]) -> None:
        super().__init__()
        self._names, self._settings = names, settings
        self._step = 0
        self._now: dict[Any, _State] = {}
        self._carried: dict[Any, torch.Tensor] = {}
        self._found: dict[tuple[str, str, int, str], dict[str, Any]] = {}
        self._losses: dict[tuple[str, str, int, str], _Loss] = {}
        self._sums: dict[int, _Sum] = {}
        self._summed: set[int] = set()
        self._owners: dict[Any, str] = {}

    # ---------------------------------------------------------------- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = op_name(func)
        if (op.startswith("__get") and op != "__getitem__") or called_by_precaudit(func) or in_transform():
            return _as_it_is(func, args, kwargs)
        state = self._before(op, func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype in _HALVES and _is_plain(result):
            # What can't run once more in float32 tells nothing; the script goes on.
            with torch.no_grad(), suppress(RuntimeError, TypeError, ValueError):
                self._after(op, func, args, kwargs, result, state)
        return result

    def _before(self, op: str, func: Any, args: Any, kwargs: Any) -> _State | None:
        """The state that an in-place operation is about to change, if it was there before this step."""
        target = args[0] if args else None
        if op not in _CHANGES or "out" in kwargs or not writes(func, kwargs) or not isinstance(target, torch.Tensor):
            return None
        if target.dtype not in _HALVES or not _is_plain(target):
            return None
        if not self._following or len(self._now) > _MOST:
            return None
        known = self._now.get(_key(target))
        if known is not None and torch.equal(known.stored, target.detach()):
            return known
        value = target.detach().float()
        state = self._now[_key(target)] = _State(value, value.clone(), target.detach().clone(), self._owner(target))
        return state

    def _after(self, op: str, func: Any, args: Any, kwargs: Any, result: torch.Tensor, state: _State | None) -> None:
        self._look_for_integers(op, args, result)
        self._look_for_overflow(op, args, kwargs, result)
        if op in _READS_ROWS and result.requires_grad:
            self._watch_rows(op, args, result)
        if state is not None:
            self._changed(op, func, args, kwargs, result, state)
        elif op in _CHANGES and not result.requires_grad:
            self._derived(op, func, args, kwargs, result)

    def _changed(self, op: str, func: Any, args: Any, kwargs: Any, result: torch.Tensor, state: _State) -> None:
        func(state.exact, *(self._exact(arg) for arg in args[1:]), **{key: self._exact(kwargs[key]) for key in kwargs})
        state.stored, state.place = result.detach().clone(), caller_location()

    def _derived(self, op: str, func: Any, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        """`average = average * decay + ...`: the result may be the state of the next step."""
        if not self._following or writes(func, kwargs):
            return
        old = [t for t in tensors_in(args) if t.dtype in _HALVES and t.shape == result.shape]
        lives = [life for t in old if (life := getattr(t, _LIFE, None)) is not None]
        begun = [life for life in lives if life.step == self._step and life.start is not None]
        ended = [life for life in lives if life.step == self._step - 1]
        for life in ended if self._measuring else ():
            self._settle(life)
        start = begun[0].start if begun else ended[0].stored.float() if ended else None
        exact = func(*(self._exact(arg) for arg in args), **{key: self._exact(kwargs[key]) for key in kwargs})
        setattr(result, _LIFE, _Life(self._step, start, exact, result.detach(), caller_location()))

    def _settle(self, life: _Life) -> None:
        """A result that is read in the next step was a state."""
        if life.start is not None and not life.settled:
            life.settled = True
            self._lost(life.place, "", life.stored, life.exact, life.start)

    def _lost(
        self, place: Location | None, owner: str, stored: torch.Tensor, exact: torch.Tensor, start: torch.Tensor
    ) -> None:
        where = (place.path, place.line) if place else ("", 0)
        change, lost = _energy(exact - start), _energy(stored.float() - exact)
        if math.isfinite(change + lost):
            loss = self._losses.setdefault(("state", *where, owner), _Loss(_name(stored)))
            loss.change, loss.lost, loss.times = loss.change + change, loss.lost + lost, loss.times + 1

    def _exact(self, value: Any) -> Any:
        """A low tensor as it would be had this step been exact so far."""
        life = getattr(value, _LIFE, None)
        return life.exact if life is not None and life.step == self._step else to_float32(value)

    def _owner(self, tensor: torch.Tensor) -> str:
        """The module whose parameter or buffer this is; '' for any other tensor."""
        key = _key(tensor)
        if key not in self._owners:
            named = (
                pair for m in self._names.models.values() for pair in chain(m.named_parameters(), m.named_buffers())
            )
            self._owners[key] = next((name.rpartition(".")[0] for name, own in named if _key(own) == key), "")
        return self._owners[key]

    def _note(self, kind: str, **facts: Any) -> None:
        place = caller_location()
        where = (place.path, place.line) if place else ("", 0)
        entry = self._found.setdefault((kind, *where, facts.get("fqn", "")), {"kind": kind, **facts})
        entry |= {"path": where[0], "line": where[1]}
        self._publish()

    def _publish(self) -> None:
        states = [
            {"kind": kind, "path": path, "line": line, "fqn": fqn, "dtype": loss.dtype, "lost": loss.lost / loss.change}
            for (kind, path, line, fqn), loss in self._losses.items()
            if loss.change > 0 and loss.times >= 2
        ]
        self._settings["low"] = [*self._found.values(), *states]

    # ---------------------------------------------------------------- one operation

    def _look_for_integers(self, op: str, args: Any, result: torch.Tensor) -> None:
        """Whole numbers above 2^p that a cast makes others."""
        limit = 2.0 / torch.finfo(result.dtype).eps
        for source in tensors_in(args) if op in _CASTS else ():
            if source.dtype in _HALVES or source.dtype == torch.bool or source.numel() < 2:
                continue
            if source.shape != result.shape or source.is_complex() or source.requires_grad:
                continue
            values = source.detach().double()
            large = (values.abs() > limit) & (values.abs() < _EXACT_INTEGERS)
            whole = large & (values == values.round())
            changed = int((whole & (result.double() != values)).sum())
            if changed > 1 and int(whole.sum()) > 0.9 * int(large.sum()):
                top = float(values[whole].abs().max())
                self._note("integers", dtype=_name(result), limit=limit, amax=top, changed=changed)

    def _look_for_overflow(self, op: str, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        """The first operation that makes a non-finite low value from finite ones."""
        if op in _MASKS or any(kind == "overflow" for kind, *_ in self._found) or bool(result.isfinite().all()):
            return
        inputs = [t for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        if all(bool(t.isfinite().all()) for t in inputs):
            top = max((float(t.abs().max()) for t in inputs if t.numel()), default=0.0)
            self._note("overflow", dtype=_name(result), op=op, amax=top, step=self._step)

    def _watch_rows(self, op: str, args: Any, result: torch.Tensor) -> None:
        """A row read many times sums as many gradients, in the dtype that it is stored in."""
        table, index = _table_and_index(op, args)
        if table is None or index is None or not table.requires_grad or table.dtype not in _HALVES:
            return
        place, exact = caller_location(), {"sum": torch.zeros(table.shape, device=table.device)}

        def arrived(gradient: torch.Tensor) -> None:
            rows = gradient.detach().float().reshape(-1, *table.shape[1:])
            exact["sum"].index_add_(0, index.reshape(-1), rows)

        def summed(gradient: torch.Tensor) -> None:
            # Rows that get no gradient at all are padding.
            wanted = exact["sum"] * (gradient != 0).flatten(1).any(1).reshape(-1, *[1] * (table.dim() - 1))
            energy = _energy(wanted)
            lost = _energy(gradient.float() - wanted) / energy if energy else 0.0
            where = (place.path, place.line) if place else ("", 0)
            entry = {"kind": "rows", "path": where[0], "line": where[1], "dtype": _name(table), "lost": lost}
            known = self._found.setdefault(("rows", *where, ""), entry)
            known["lost"] = max(known["lost"], lost)
            self._publish()

        result.register_hook(arrived)
        table.register_hook(summed)

    # ---------------------------------------------------------------- training

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        for root in roots:
            if (scale := _factor(root)) >= _RUNAWAY:
                self._note("runaway", scale=min(scale, 2.0**127), step=self._step)
        for model in self._names.models.values():
            for fqn, parameter in model.named_parameters():
                self._follow_sum(fqn, parameter)

    def _follow_sum(self, fqn: str, parameter: torch.Tensor) -> None:
        """Gradients that a low parameter accumulates over several backward passes, beside their float32 sum."""
        if parameter.dtype not in _HALVES or not parameter.requires_grad:
            return
        if parameter.grad is None:
            self._sums.pop(id(parameter), None)
        if id(parameter) not in self._summed:
            self._summed.add(id(parameter))

            def add(gradient: torch.Tensor) -> None:
                value = gradient.detach().float().to_dense()
                known = self._sums.get(id(parameter))
                self._sums[id(parameter)] = _Sum(value if known is None else known.exact + value)

            def added(parameter: torch.Tensor) -> None:
                known = self._sums.get(id(parameter))
                if known is not None and parameter.grad is not None and not parameter.grad.is_sparse:
                    known.stored = parameter.grad.detach().clone()

            parameter.register_hook(add)
            parameter.register_post_accumulate_grad_hook(added)

    def step_starts(self, optimizer: Any) -> None:
        self._compare_sums()
        if optimizer is None:
            return
        bad = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = [p for p in bad if not bool(_values(p.grad).isfinite().all())]
        if bad and not any(kind == "steps" for kind, *_ in self._found):
            self._note("steps", step=self._step, fqn=self._owner(bad[0]), parameters=len(bad))

    def _compare_sums(self) -> None:
        for model in self._names.models.values():
            for name, parameter in model.named_parameters():
                known = self._sums.get(id(parameter))
                if known is None or known.stored is None or not _energy(known.exact):
                    continue
                lost = _energy(known.stored.float() - known.exact) / _energy(known.exact)
                fqn = name.rpartition(".")[0]
                if math.isfinite(lost):
                    entry = {"kind": "gradients", "fqn": fqn, "dtype": _name(parameter), "lost": lost}
                    noted = self._found.setdefault(("gradients", "", 0, fqn), entry)
                    noted["lost"] = max(noted["lost"], lost)
        self._sums.clear()

    def step_ended(self, optimizer: Any) -> None:
        """What follows the optimizer's step, such as an average's update, belongs to the next one."""
        for key, state in self._now.items():
            before = self._carried.get(key) if self._measuring else None
            if before is not None and torch.equal(before, state.start.to(before.dtype)):
                self._lost(state.place, state.owner, state.stored, state.exact, state.start)
        self._step += 1
        self._carried = {key: state.stored for key, state in self._now.items()}
        self._now = {}
        self._publish()

    @property
    def _following(self) -> bool:
        return self._step % _CYCLE >= _CYCLE - 3

    @property
    def _measuring(self) -> bool:
        return self._step % _CYCLE == _CYCLE - 1


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0 and tensor.device.type != "meta"


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _as_it_is(operation: Any, args: Any, kwargs: Any) -> Any:
    """Handed on under a name of its own, by which `called_by_precaudit` knows a call that is not the script's."""
    return operation(*args, **kwargs)


def _factor(root: torch.Tensor) -> float:
    """The loss scale of what a backward pass starts from: its scaler's, or what the script multiplied it by."""
    factor = getattr(root, FACTOR, getattr(root.grad_fn, "_saved_other", None))
    if isinstance(factor, torch.Tensor):
        return float(factor) if factor.numel() == 1 else 0.0
    return factor or 0.0


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _table_and_index(op: str, args: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The table of rows and the index into its first dimension, whichever comes first in the call."""
    plain = len(args) >= 2 and all(isinstance(arg, torch.Tensor) for arg in args[:2])
    rows = plain or (op == "index_select" and len(args) == 3 and args[1] == 0)
    tensors = tensors_in(args) if rows else []
    table = next((t for t in tensors if t.is_floating_point() and t.dim() > 1), None)
    index = next((t for t in tensors if t.dtype in (torch.int64, torch.int32)), None)
    return table, index
