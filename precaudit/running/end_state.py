"""The state at the end of a run: non-finite tensors, and the models' outputs for their last batch in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import reduce
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from precaudit.histograms.memory import flat, has_no_values, outside_transforms
from precaudit.instrument.events import parameters_of
from precaudit.instrument.names import by_module, has_parameters
from precaudit.instrument.scopes import Frame, ModuleScopes, ScopeListener
from precaudit.instrument.torch_function import floats_in, plain, tensors_in
from precaudit.running.evaluation import Evaluation, PlanComparison, evaluate
from precaudit.running.job import EndState, ScriptError
from precaudit.running.script_errors import record_of

_SAMPLE = 256
"""Values of a tensor that are compared."""
_FEW = 8
"""Buffers with fewer values (a counter, the last loss) are too small to tell how far they moved."""
_ELSEWHERE = " outside of training"
"""Suffix of a model's name for its calls in eval mode or without gradients: validation, sampling."""
_MOVED = 1e-5
"""Relative to its rms: a buffer that changes by less has not moved."""


def is_called(frame: Frame) -> bool:
    """Whether this is the call of a whole model: by the script, or by a loss that holds the model in a list."""
    return frame.is_outermost or not frame.name.fqn


class LastCalls(ScopeListener):
    """The arguments of every model's last training call, and of its last call outside of training. Models with weights
    are kept alive for that, until the script has dropped them and calls another; losses without weights, which a script
    may create in every step, are not. Nor are calls with shapes alone, by which a library infers others: repeated, some
    compute with memory that nothing was written to."""

    def __init__(self) -> None:
        self._calls: MutableMapping[nn.Module, dict[str, tuple[Any, Any]]] = by_module()
        self._kept: dict[str, nn.Module] = {}

    @property
    def calls(self) -> dict[str, tuple[nn.Module, Any, Any]]:
        return {name: (module, *call) for module, calls in self._calls.items() for name, call in calls.items()}

    def left(self, frame: Frame, output: Any) -> None:
        if is_called(frame) and output is not None and not any(map(has_no_values, tensors_in(frame.call))):
            trains = torch.is_grad_enabled() and frame.module.training
            name = frame.name.qualified + ("" if trains else _ELSEWHERE)
            self._calls.setdefault(frame.module, {})[name] = frame.call
            if has_parameters(frame.module):
                self._kept[name] = frame.module

    def release(self) -> None:
        """Release the models that the script no longer holds: one that it creates anew takes its name."""
        self._kept.clear()
        held = [module for module in self._calls if has_parameters(module)]
        self._kept = {name: module for module in held for name in self._calls[module]}


class LostOutputs(ScopeListener):
    """The first step in which an output of each model had nan or inf, though its inputs had none (a library may count
    operations with uninitialized ones). Neither an output that the loss does not use nor an evaluation need show it
    otherwise. -inf is allowed, as masks produce it."""

    def __init__(self, step: Callable[[], int]) -> None:
        self._step = step
        self._first: dict[tuple[str, torch.device], torch.Tensor] = {}

    @property
    def first(self) -> dict[str, int]:
        steps = sorted((float(first), name) for (name, _), first in self._first.items())
        return {name: int(step) for step, name in reversed(steps) if step < math.inf}

    def left(self, frame: Frame, output: Any) -> None:
        if is_called(frame):
            with torch._C.DisableTorchFunction(), torch.no_grad(), outside_transforms():
                given = _sound(frame.call)
                for sound in _sound(output):
                    excuses = [~each.to(sound.device) for each in given]
                    self._note((frame.name.qualified, sound.device), reduce(torch.logical_or, excuses, sound))

    def _note(self, key: tuple[str, torch.device], sound: torch.Tensor) -> None:
        """Updates the first step on the device, without synchronizing with it."""
        now = torch.where(sound, math.inf, float(self._step()))
        self._first[key] = torch.minimum(self._first.get(key, now), now)


class FirstValues(ScopeListener):
    """Samples of every model's buffers and parameters before its first forward."""

    def __init__(self) -> None:
        self._first: MutableMapping[nn.Module, dict[str, _Sample]] = by_module()

    def entered(self, frame: Frame) -> None:
        if is_called(frame) and frame.module not in self._first:
            for module in frame.module.modules():
                own = {**module._buffers, **module._parameters}
                self._first.setdefault(module, dict(_samples(own)))

    def moved(self, module: nn.Module, own: Mapping[str, torch.Tensor | None]) -> Iterator[tuple[str, float]]:
        """How far each of the module's own tensors has moved: name and rms of the change; of the small ones, those that
        stood still."""
        for name, before, now in self._pairs(module, own):
            far, size = _rms(now.values - before.values), _rms(before.values)
            if far <= _MOVED * size or len(now.values) >= _FEW:
                yield name, far if far > _MOVED * size else 0.0

    def _pairs(
        self, module: nn.Module, own: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, _Sample, _Sample]]:
        first = self._first.get(module, {})
        for name, now in _samples(own):
            if name in first and first[name].values.shape == now.values.shape:
                yield name, first[name], now

    def farthest(self, models: Iterable[nn.Module], optimizers: Iterable[Any]) -> float:
        """The largest change of a trained parameter, relative to its initial rms or, where that is zero, to the median
        rms of all parameters; inf where all began at zero, or where a parameter was in no model at its first call."""
        modules = [module for model in models for module in model.modules()]
        samples = [
            (m._parameters[name], before, now) for m in modules for name, before, now in self._pairs(m, m._parameters)
        ]
        typical = median([size for _, before, _ in samples if (size := _rms(before.values))] or [0.0])
        found = {id(p): _share(before, now, _rms(before.values) or typical) for p, before, now in samples}
        trained = [p for optimizer in optimizers for p in parameters_of(optimizer) if p.numel()]
        return max((found.get(id(p), math.inf) for p in trained), default=math.inf)


@dataclass(frozen=True)
class _Sample:
    """Some of a tensor's values, on the host, and a checksum of all of them."""

    values: torch.Tensor
    checksum: int


def _sound(values: Any) -> list[torch.Tensor]:
    """For each floating-point tensor in any nesting, on its device: whether it has neither nan nor +inf."""
    parts = map(flat, floats_in(values))
    return [plain(part).amax() < math.inf for part in parts if part is not None and part.numel()]


def _share(before: _Sample, now: _Sample, size: float) -> float:
    """The rms change of those sampled values that moved (perhaps a few rows of many), relative to `size`; inf where the
    tensor moved but none of the sampled values did."""
    moved = now.values != before.values
    if not moved.any():
        return math.inf if now.checksum != before.checksum else 0.0
    return _rms((now.values - before.values)[moved]) / size if size else math.inf


def _samples(own: Mapping[str, torch.Tensor | None]) -> Iterator[tuple[str, _Sample]]:
    """Samples of the floating-point tensors, taken without the modes of tracers and plans."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        for name, tensor in own.items():
            if tensor is None or is_lazy(tensor) or not tensor.is_floating_point():
                continue
            values = flat(tensor)
            if values is not None and values.numel():
                yield name, _Sample(_sampled(values).to("cpu", torch.float64, copy=True), _checksum(values))


def _sampled(values: torch.Tensor) -> torch.Tensor:
    return values[:: max(1, len(values) // _SAMPLE)][:_SAMPLE]


def _checksum(values: torch.Tensor) -> int:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return int(values.resolve_neg().contiguous().view(whole).sum())


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _nonfinite(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, ...]:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        real = [(name, flat(t)) for name, t in named if not is_lazy(t) and t.is_floating_point()]
        return tuple(name for name, values in real if values is not None and not bool(plain(values).isfinite().all()))


def end_state(
    scopes: ModuleScopes,
    optimizers: Iterable[Any],
    calls: Mapping[str, tuple[nn.Module, Any, Any]],
    first: FirstValues,
    lost: Mapping[str, int] = MappingProxyType({}),
    comparison: PlanComparison | None = None,
) -> EndState:
    """The state of models and optimizers, and the outputs of one more call of each model in `calls`, in eval mode."""
    models = scopes.names.models

    def moved(kind: str) -> dict[str, float]:
        ways = [(path, first.moved(module, getattr(module, kind))) for path, module in _named(models, "modules")]
        return {f"{path}.{name}".lstrip("."): far for path, own in ways for name, far in own}

    with torch._C.DisableTorchFunction(), torch.no_grad():
        asked = {name: call for name, call in calls.items() if all(map(bool, _sound(call[1:])))}
    evaluations = {name: _evaluate(scopes, *call, comparison) for name, call in asked.items()}
    kept = {name: each for name, each in evaluations.items() if isinstance(each, Evaluation) and each.values.numel()}
    return EndState(
        parameters=_nonfinite(_named(models, "parameters")),
        buffers=_nonfinite(_named(models, "buffers")),
        moved=moved("_buffers"),
        learned=moved("_parameters"),
        farthest=first.farthest(models.values(), optimizers),
        lost=lost,
        optimizer_state=tuple(sorted(set(_nonfinite(_states(optimizers))))),
        evaluations={name: (bool(each.values.isfinite().all()), _rms(each.values)) for name, each in kept.items()},
        deviations={name: each.deviation for name, each in kept.items() if each.deviation},
        refused={name: each for name, each in evaluations.items() if isinstance(each, ScriptError)},
    )


def _named(models: Mapping[str, nn.Module], kind: str) -> Iterator[tuple[str, Any]]:
    """The `parameters`, `buffers` or `modules` of all models by name, prefixed by the model's name if there are
    several."""
    for name, model in models.items():
        for fqn, owned in getattr(model, f"named_{kind}")():
            yield (f"{name}.{fqn}".rstrip(".") if len(models) > 1 else fqn), owned


def _states(optimizers: Iterable[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for optimizer in optimizers:
        for state in getattr(optimizer, "state", {}).values():
            for key, value in state.items() if hasattr(state, "items") else ():
                if isinstance(value, torch.Tensor):
                    yield f"{type(optimizer).__name__}.{key}", value


def _evaluate(
    scopes: ModuleScopes, module: nn.Module, args: Any, kwargs: Any, comparison: PlanComparison | None
) -> Evaluation | ScriptError:
    """The model's outputs in eval mode, or the error that it raises."""
    try:
        return evaluate(module, args, kwargs, comparison)
    except (Exception, SystemExit) as error:
        return replace(record_of(error), raised_in=scopes.raised_in)
