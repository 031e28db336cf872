"""Gradient probes: the gradient of one step in low precision against float32's, on the same weights and batch.

The reference run saves its gradients at the probed steps. A second run with the same seed trains in float32
except at those steps, where it computes the gradient under a plan, records the difference, and then restores the
saved float32 gradient and the buffers that the forward pass changed (a queue of keys, a codebook's averages): its
trajectory stays the reference's, however many plans it tries.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from precaudit.errors import LacksRoom
from precaudit.execution.loss_scaling import scaler_for
from precaudit.execution.native import precision_for
from precaudit.histograms.memory import of_this_rank
from precaudit.instrument.events import TrainingEvents, TrainingListener, in_backward, parameters_of
from precaudit.instrument.names import ModuleNames, has_parameters
from precaudit.instrument.scopes import Frame, ModuleScopes, ScopeListener
from precaudit.instrument.torch_function import energy
from precaudit.running.job import RunSpec
from precaudit.tracing.aliasing import AliasingWatch
from precaudit.tracing.records import AliasedValues, GradientDifference, HalfResult

ENOUGH_BYTES = 16e9
"""Limit for saved gradients; of a large model fewer steps are probed."""
_TURNS = 4
"""How many steps back the previous batch of the same optimizer is searched for."""
SAMPLE = 1 << 16
"""Values of one parameter in sums of vectors; the sample's energy has an error of half a percent."""


class GradientProbe(TrainingListener, ScopeListener):
    """Saves or compares gradients, and runs the probed steps under their plans."""

    def __init__(
        self,
        spec: RunSpec,
        names: ModuleNames,
        scopes: ModuleScopes,
        events: TrainingEvents,
        in_disabled_region: Callable[[], bool],
    ) -> None:
        self._events = events
        self._made: int | None = None
        self._stepped: list[int] = []
        self._sums: dict[tuple[str, str], dict[str, _Sums]] = {}
        self._spec, self._names = spec, names
        self._folder = Path(spec.probe_dir or ".")
        self._step = 0
        self._ready = False
        execution = precision_for(spec.execution)
        self._executions: dict[int, ScopeListener] = {
            step: execution(plan, scopes, has_parameters, in_disabled_region)
            for step, (_, plan) in spec.probe_compare.items()
        }
        self._scaler = self._scaler_of_step()
        self._saves = spec.probe_save
        self._scopes, self._aliasing = scopes, AliasingWatch()

    # ---- the plan of the probed step

    def entered(self, frame: Frame) -> None:
        execution = frame.root.data.get("probed")
        if frame.is_outermost:
            execution = frame.data["probed"] = None if self._again else self._executions.get(self._step)
        if execution is not None:
            execution.entered(frame)
            if frame.is_outermost:
                _, plan = self._spec.probe_compare[self._step]
                self._aliasing.entered(frame, lambda: self._scopes.current, plan.default)

    def left(self, frame: Frame, output: Any) -> Any:
        execution = frame.root.data.get("probed")
        if execution is None:
            return output
        if frame.is_outermost:
            self._aliasing.left(frame)
        return execution.left(frame, output)

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any] | None:
        self._made, self._stepped = None if self._again else self._step, []
        return self._scaler.backward_starts(roots, gradients)

    def gradient_starts(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[Any] | None:
        return self._scaler.gradient_starts(outputs, inputs)

    def gradient_taken(self, outputs: Sequence[torch.Tensor]) -> None:
        self._scaler.gradient_taken(outputs)

    @property
    def _again(self) -> bool:
        """Whether a closure is evaluated once more, with other weights than those of the gradients compared."""
        return self._ready and self._events.in_step

    def _scaler_of_step(self) -> TrainingListener:
        """The loss scaler of the plan that is probed in this step, if it has one; else one that does nothing."""
        _, plan = self._spec.probe_compare.get(self._step, ("", None))
        return scaler_for(plan) or TrainingListener()

    def backward_nested(self, roots: Sequence[torch.Tensor]) -> None:
        self._scaler.backward_nested(roots)

    def gradient_nested(self, running: bool) -> None:
        self._scaler.gradient_nested(running)

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self._scaler.backward_ended(roots)

    # ---- gradients at the optimizer step

    def gradients_ready(self, optimizer: Any) -> None:
        """Several optimizers may use one backward pass, each for its own parameters, and may step inside it."""
        self._ready = True
        if not in_backward():
            self._scaler = TrainingListener()
        if self._made is None or id(optimizer) in self._stepped:
            return
        path = self._file(self._made)
        if self._made in self._saves:
            self._save(self._gradients(optimizer), path)
        if self._made in self._spec.probe_compare and path.exists():
            label, _ = self._spec.probe_compare[self._made]
            gradients, buffers = _load(path)
            self._compare(label, self._gradients(optimizer), gradients)
            _put_back(self._buffers(), buffers)

    def _file(self, step: int) -> Path:
        """The file of the gradients from the backward pass in `step`, for the optimizer whose turn it is."""
        turn = f"-{len(self._stepped)}" if self._stepped else ""
        return self._folder / f"{step}{turn}.pt"

    def _save(self, gradients: dict[str, torch.Tensor], path: Path) -> None:
        saved = gradients, self._buffers()
        size = sum(tensor.nbytes for part in saved for tensor in part.values())
        if self._made == min(self._saves):
            free, least = shutil.disk_usage(self._folder).free, 1 + len(self._spec.formats)
            self._saves = affordable(self._saves, size, free, least)
        try:
            torch.save(saved, path)
        except (OSError, RuntimeError) as error:
            raise LacksRoom(
                f"cannot keep gradients in {self._folder}: {error}; the audit needs {size * len(self._saves):,} bytes "
                "there: set TMPDIR to a folder with more space"
            ) from error

    def step_ended(self, optimizer: Any) -> None:
        self._stepped.append(id(optimizer))

    def step_complete(self, optimizer: Any) -> None:
        self._step += 1
        self._ready = False
        self._scaler = self._scaler_of_step()

    def _gradients(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """The dense gradients that this step uses, by the qualified names of their parameters."""
        wanted = set(map(id, parameters_of(optimizer)))
        found: dict[str, torch.Tensor] = {}
        for model_name, model in self._names.models.items():
            for fqn, parameter in model.named_parameters():
                gradient = parameter.grad
                if gradient is None or gradient.is_sparse or not (optimizer is None or id(parameter) in wanted):
                    continue
                found[f"{model_name}.{fqn}"] = of_this_rank(gradient)
        return found

    def _buffers(self) -> dict[str, torch.Tensor]:
        return {
            f"{model_name}.{fqn}": of_this_rank(buffer)
            for model_name, model in self._names.models.items()
            for fqn, buffer in model.named_buffers()
            if _is_state(buffer)
        }

    @torch.no_grad()
    def _compare(self, label: str, gradients: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
        previous = self._previous(saved)
        for key, gradient in gradients.items():
            if key in saved:
                sums = self._sums.setdefault((label, key.rpartition(".")[0]), {}).setdefault(key, _Sums())
                exact = saved[key].to(gradient.device)
                sums.add(gradient, exact, previous[key].to(gradient.device) if key in previous else None)
                gradient.copy_(exact)

    def _previous(self, saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients of the previous batch for the same parameters: a GAN's optimizers alternate."""
        assert self._made is not None
        for step in range(self._made - 1, max(-1, self._made - 1 - _TURNS), -1):
            if (path := self._file(step)).exists():
                found, _ = _load(path)
                if not saved.keys().isdisjoint(found):
                    return found
        return {}

    @property
    def aliased(self) -> tuple[AliasedValues, ...]:
        return tuple(self._aliasing.found.values())

    @property
    def half_results(self) -> frozenset[HalfResult]:
        return self._aliasing.half_results

    @property
    def differences(self) -> tuple[GradientDifference, ...]:
        return tuple(_difference(label, fqn, list(sums.values())) for (label, fqn), sums in self._sums.items())


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients and buffers, memory-mapped on the host: a GPU in training may have no room for them."""
    gradients, buffers = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return gradients, buffers


def _is_state(buffer: torch.Tensor) -> bool:
    """Whether a forward pass may round the buffer, and no backward pass needs it unchanged."""
    if is_lazy(buffer) or buffer.is_meta or buffer.is_nested or buffer.requires_grad:
        return False
    return buffer.is_floating_point() and buffer.layout is torch.strided


@torch.no_grad()
def _put_back(buffers: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    for key, buffer in buffers.items():
        if key in saved and buffer.shape == saved[key].shape and not torch.equal(buffer, saved[key].to(buffer)):
            buffer.copy_(saved[key])


def affordable(steps: frozenset[int], size: int, free: int, least: int) -> frozenset[int]:
    """The steps whose gradients (`size` bytes each) are saved where `free` bytes are left: equally many from the start
    of every run of consecutive steps, and at least `least`, so that each format is probed once."""
    if not steps or size * len(steps) <= min(ENOUGH_BYTES, free / 2):
        return steps
    stretches: list[list[int]] = []
    for step in sorted(steps):
        if not stretches or stretches[-1][-1] != step - 1:
            stretches.append([])
        stretches[-1].append(step)
    each = max(least, int(min(ENOUGH_BYTES, free / 2) / size) // len(stretches))
    return frozenset(step for stretch in stretches for step in stretch[:each])


def _sampled(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """At most about `SAMPLE` values, evenly spread over all columns, and how many values each represents."""
    flat = values.flatten()
    stride = max(1, -(-flat.numel() // SAMPLE))
    while stride > 1 and math.gcd(stride, values.shape[-1]) > 1:
        stride += 1
    sample = flat[::stride]
    return sample, max(1, flat.numel()) / max(1, sample.numel())


@dataclass
class _Sums:
    """Running sums of one parameter over the probed steps of one plan. Sums of vectors are kept of a sample only: the
    full ones would take two more copies of the model for each format and phase.

    `delta`, `gradient` and `noise` are sums of squares: of the error, of float32's gradient, and of half the change
    between consecutive batches.
    """

    evaluations: int = 0
    neighbours: int = 0
    delta: float = 0.0
    gradient: float = 0.0
    noise: float = 0.0
    weight: float = 1.0
    sampled_delta: float = 0.0
    total_delta: torch.Tensor | None = None
    total_gradient: torch.Tensor | None = None

    def add(self, low: torch.Tensor, exact: torch.Tensor, previous: torch.Tensor | None) -> None:
        difference = low - exact
        self.evaluations += 1
        self.delta += energy(difference)
        self.gradient += energy(exact)
        if previous is not None and previous.shape == exact.shape:
            self.neighbours += 1
            self.noise += energy(exact - previous) / 2
        (delta, self.weight), (gradient, _) = _sampled(difference), _sampled(exact)
        self.sampled_delta += energy(delta)
        self.total_delta = delta.clone() if self.total_delta is None else self.total_delta + delta
        self.total_gradient = gradient.clone() if self.total_gradient is None else self.total_gradient + gradient

    @property
    def of_mean(self) -> float:
        """Energy (sum of squares) of the mean gradient."""
        total = self.total_gradient
        return energy(total) * self.weight / self.evaluations**2 if total is not None else 0.0

    @property
    def shared(self) -> float:
        """Energy of the error component that all batches share: the mean dot product of the errors of two different
        batches, an unbiased estimate, which is zero in expectation for independent errors."""
        if math.isinf(self.delta):
            return math.inf
        pairs = self.evaluations * (self.evaluations - 1)
        if self.total_delta is None or not pairs:
            return 0.0
        return (energy(self.total_delta) - self.sampled_delta) * self.weight / pairs


def _difference(label: str, fqn: str, parts: list[_Sums]) -> GradientDifference:
    count = max(part.evaluations for part in parts)
    return GradientDifference(
        label=label,
        fqn=fqn,
        evaluations=count,
        delta=sum(part.delta / part.evaluations for part in parts),
        gradient=sum(part.gradient / part.evaluations for part in parts),
        noise=sum(part.noise / part.neighbours for part in parts if part.neighbours),
        bias=sum(part.shared for part in parts),
        mean=sum(part.of_mean for part in parts),
    )
