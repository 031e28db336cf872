"""The tracer: module scopes and training events in, slots out. One entry, one exit, nothing left behind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch.utils.hooks import unserializable_hook

from precaudit.execution.atomics import not_in_place
from precaudit.execution.formats import no_disabled_region
from precaudit.execution.policy import ACCUMULATING, MASKED, Category, category
from precaudit.formats import HALF_FORMATS, get_format
from precaudit.histograms import Peak, take_peak
from precaudit.instrument.events import TrainingListener, in_backward
from precaudit.instrument.functions import IN_FUNCTION
from precaudit.instrument.names import ModuleName, is_leaf
from precaudit.instrument.scopes import REPEATED, Frame, ModuleScopes, ScopeListener
from precaudit.instrument.torch_function import Call, dtype_name, floats_in, tensors_in
from precaudit.tracing.extremes import largest
from precaudit.tracing.faults import FaultWatch, Inputs, finite_amax
from precaudit.tracing.flops import COUNTED, counted_flops
from precaudit.tracing.integers import EXACT_INTEGERS, integer_amax
from precaudit.tracing.ops import TraceMode, caller_location, follows_dtype, mark_following, scalars, unasked
from precaudit.tracing.parameters import ParameterTracker
from precaudit.tracing.records import ABSORBING, STOPPING
from precaudit.tracing.shadow import Energies, local_errors, repeatable
from precaudit.tracing.slots import Gauge, LayerSlot, OpSlot

_FORWARD = ""
"""Stands for a module's forward as a whole among the names of operations."""

_ALL_SHADOWED = 8
_MAX_ORDINAL = 8
"""Further calls of one operation in one forward share a slot, so that loops don't grow the trace: one for results that
are half, one for the others."""

_MAX_PEAKS = 256
"""Steps whose maxima may wait on their device; of four times as many, neighbours are folded into one."""


@dataclass(frozen=True)
class TraceOptions:
    """`audited` tells which steps are recorded, `shadowed` which of them also measure local errors in
    `formats`; `per_step` folds the gradients' maxima at every audited step; `watch` looks for faults; `autocast`
    tells the dtype of the script's own autocast region at this moment."""

    audited: Callable[[int], bool] = lambda step: True
    shadowed: Callable[[int], bool] = lambda step: False
    formats: tuple[str, ...] = ()
    per_step: bool = False
    watch: bool = False
    autocast: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class _Token:
    slot: OpSlot
    count: int
    inputs: Inputs | None


class Tracer(TrainingListener, ScopeListener):
    def __init__(
        self, scopes: ModuleScopes, options: TraceOptions, in_disabled_region: Callable[[], bool] = no_disabled_region
    ) -> None:
        """`in_disabled_region` says whether the script itself has disabled autocast."""
        self.options = options
        self._in_disabled_region = in_disabled_region
        self.ops: dict[tuple[ModuleName, str, int], OpSlot] = {}
        self.layers: dict[ModuleName, LayerSlot] = {}
        self.parameters = ParameterTracker(lambda: self.log2_scale)
        self.watch = FaultWatch() if options.watch else None
        self._peaks: list[tuple[int, Peak]] = []
        self._maxima: list[tuple[int, float]] = []
        self.audited_steps = 0
        self.low_dtypes: set[str] = set()
        self.log2_scale = 0
        self._scopes = scopes
        self._mode = TraceMode(self, self._category)
        self._exact_integers = min(
            (2.0 ** get_format(name).precision for name in options.formats), default=EXACT_INTEGERS
        )
        self.step = 0
        self._pass = 0
        self.computing: set[ModuleName] = set()
        self.ran: set[ModuleName] = set()
        """Modules that ran in a training forward pass of any step."""
        self.read: set[int] = set()
        """Ids of parameters that are direct arguments of operations."""
        self._seen_in_pass: dict[tuple[ModuleName, str], int] = {}
        self._last: tuple[OpSlot, list[torch.Tensor]] | None = None
        self._weights_counted = False
        self._begin_step()

    # -------------------------------------------------------------- steps

    def _begin_step(self) -> None:
        self.recording = self.options.audited(self.step)
        self._calls: Counter[tuple[ModuleName, str, int]] = Counter()
        self._shadowing = self.recording and self.options.shadowed(self.step)
        self.parameters.active = self.recording
        if not self.recording:
            self.parameters.unhook()

    def _end_step(self) -> None:
        if self.recording:
            self.audited_steps += 1
            if self.options.per_step:
                self._take_peak()
        self.step += 1
        self._weights_counted = False
        self._begin_step()

    def _take_peak(self) -> None:
        """Queue the largest half gradient of this step, without synchronizing with the device."""
        lowered = {slot.module for slot in self.ops.values() if slot.category == "lower"}
        gradients = [slot.gradient.pending for slot in self.ops.values() if slot.half and slot.op not in STOPPING]
        gradients += [slot.gradient.pending for slot in self.parameters.slots.values() if slot.module in lowered]
        self._peaks.append((self.step, take_peak(gradients)))
        if len(self._peaks) == _MAX_PEAKS:
            self._settle_peaks()

    def _settle_peaks(self) -> None:
        """Fetch the queued peaks; in a long run, adjacent steps are merged, which bounds memory."""
        values = [(step, peak.value()) for step, peak in self._peaks]
        self._peaks.clear()
        self._maxima += [(step, math.log2(value)) for step, value in values if value > 0]
        if len(found := self._maxima) > 4 * _MAX_PEAKS:
            self._maxima = [max(found[i : i + 2], key=itemgetter(1)) for i in range(0, len(found), 2)]

    @property
    def maxima(self) -> tuple[tuple[int, float], ...]:
        """(step, log2 of its largest gradient); in a long run, of several steps the one with the largest."""
        self._settle_peaks()
        return tuple(self._maxima)

    @property
    def bypassed(self) -> Mapping[ModuleName, tuple[str, int]]:
        return self._scopes.bypassed

    @property
    def gauges(self) -> Iterator[Gauge]:
        for slots in (self.ops.values(), self.layers.values()):
            for slot in slots:
                yield from (slot.activation, slot.gradient)
        for parameter in self.parameters.slots.values():
            yield from parameter.gauges

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self._pass += 1

    def step_starts(self, optimizer: Any) -> None:
        if self.recording:
            self.parameters.learn_all(self._scopes.names, optimizer)
            take = self.parameters.keep_weights if self._weights_counted else self.parameters.observe_weights
            take(optimizer)
            self._weights_counted = True

    def step_ended(self, optimizer: Any) -> None:
        if self.recording:
            self.parameters.observe_step(optimizer, absorption=self._shadowing)

    def step_complete(self, optimizer: Any) -> None:
        self._end_step()

    # -------------------------------------------------------------- modules

    def entered(self, frame: Frame) -> None:
        if self.recording:
            with unasked():
                self.parameters.learn(frame.module, frame.name)
        if frame.is_outermost:
            frame.data["traced"] = self.recording
            frame.data["trains"] = torch.is_grad_enabled()
            if self.recording:
                self._mode.__enter__()
        if frame.root.data["trains"]:
            self.ran.add(frame.name)

    def left(self, frame: Frame, output: Any) -> None:
        if frame.root.data.get("traced"):
            if frame.is_outermost:
                self._mode.__exit__(None, None, None)
            if output is not None:
                with unasked():
                    self._leave(frame, output)
        if frame.is_outermost:
            self._last = None  # free the output: logits would stay in memory until the next recorded step

    def _leave(self, frame: Frame, output: Any) -> None:
        if not self._counts(frame, _FORWARD):
            return
        layer = self._layer(frame)
        layer.calls += 1
        outputs = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
        slot, made = self._last or (None, [])
        if slot and slot.module == frame.name and outputs and all(any(t is m for m in made) for t in outputs):
            layer.shared_with[id(slot)] = slot
        elif layer.leaf or frame.name in self.computing or next(frame.module.parameters(False), None) is not None:
            self._observe(layer, outputs)

    def _layer(self, frame: Frame) -> LayerSlot:
        layer = self.layers.get(frame.name)
        if layer is None:
            layer = LayerSlot(frame.name, type(frame.module).__name__, is_leaf(frame.module))
            self.layers[frame.name] = layer
        return layer

    def _observe(self, layer: LayerSlot, outputs: list[torch.Tensor]) -> None:
        for tensor in outputs:
            layer.activation.add(tensor.detach())
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(self._observer(layer))

    def _counts(self, frame: Frame, op: str) -> bool:
        """Whether to record a call: only in training forward passes (which may have parts under no_grad, such as a
        frozen backbone), and not when checkpointing recomputes it."""
        name, root = frame.name, frame.root.data
        trains = root.get("trains") and not root.get(REPEATED)
        if not (torch.is_grad_enabled() or IN_FUNCTION in frame.data or trains):
            return False
        if in_backward():
            return self._seen_in_pass.get((name, op)) != self._pass
        self._seen_in_pass[name, op] = self._pass
        return True

    # -------------------------------------------------------------- operations

    def _category(self, op: str) -> Category:
        """Autocast's category of an operation; "other" where the script has disabled autocast."""
        return "other" if self._in_disabled_region() else category(op)

    def begin(self, call: Call, half: bool) -> _Token | None:
        frame = self._scopes.current
        if frame is None:
            return None
        self.computing.add(frame.name)
        op = call.op
        if not self._counts(frame, op):
            return None
        ordinal = frame.op_counts.get(op, 0)
        frame.op_counts[op] = ordinal + 1
        key = (frame.name, op, ordinal if ordinal < _MAX_ORDINAL else _MAX_ORDINAL + half)
        slot = self.ops.get(key) or self._new_op(key, call, half)
        slot.take(scalars(call), follow="read_half_dtype" in frame.data)
        slot.follows_dtype |= any(map(follows_dtype, floats_in(call)))
        slot.in_place |= call.writes
        if self._shadowing and self._is_due(key):
            self._shadow(slot, call)
        if self.watch is None:
            return _Token(slot, ordinal, None)
        self.watch.read(call, slot)
        return _Token(slot, ordinal, self.watch.inputs(call))

    def _is_due(self, key: tuple[ModuleName, str, int]) -> bool:
        """Whether to measure the local error of a call: the first few of a step, then the 16th, 32nd, 64th ...: there
        may be hundreds of micro-batches, and late values of a loop may differ from early ones."""
        self._calls[key] += 1
        return self._calls[key] <= _ALL_SHADOWED or self._calls[key].bit_count() == 1

    def read_half_dtype(self) -> None:
        if (frame := self._scopes.current) is not None:
            frame.data["read_half_dtype"] = True

    def _new_op(self, key: tuple[ModuleName, str, int], call: Call, half: bool) -> OpSlot:
        inputs = floats_in(call)
        dtype = dtype_name(inputs[0].dtype if inputs else torch.float32)
        if dtype in HALF_FORMATS:
            self.low_dtypes.add(dtype)
        self.read.update(id(t) for t in inputs if isinstance(t, torch.nn.Parameter))
        shapes = tuple(_shape(t) for t in call.given)
        self.ops[key] = slot = OpSlot(
            *key[:2],
            self._category(key[1]),
            caller_location(),
            shapes,
            dtype,
            half,
            self.options.autocast(),
            flops=counted_flops(call) if call.op in COUNTED else None,
        )
        return slot

    def _shadow(self, slot: OpSlot, call: Call) -> None:
        op, inputs = call.op, floats_in(call)
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in inputs):
            return
        masked = (call.args[:3], [call.kwargs.get(name) for name in MASKED.get(op, ())])
        factors = tensors_in(masked) if op in MASKED else inputs
        slot.input_amax = largest((slot.input_amax, finite_amax(factors)))
        if op in ACCUMULATING:
            slot.integer_input = largest((slot.integer_input, integer_amax(factors, self._exact_integers)))
        call = not_in_place(call)
        if repeatable(call) and not any(map(follows_dtype, inputs)):  # a format has a mask of its own size
            for name, energies in self._local_errors(call).items():
                # A zero-initialized branch is absorbed at first and grows: the latest measurement counts.
                slot.local[name] = energies if op in ABSORBING else slot.local.get(name, Energies()) + energies

    def _local_errors(self, call: Call) -> dict[str, Energies]:
        """The local errors; {} for an operation that can't be repeated in a low format."""
        try:
            return local_errors(call, self.options.formats)
        except (RuntimeError, TypeError, ValueError):
            return {}

    def record(self, token: _Token | None, outputs: list[torch.Tensor]) -> None:
        if token is None:
            return
        slot = token.slot
        slot.calls += 1
        if slot.follows_dtype and slot.category in ("promote", "other"):  # a softmax leaves nothing of a mask
            mark_following(outputs)
        for tensor in outputs:
            slot.activation.add(tensor.detach())
            if self.watch and token.inputs:
                self.watch.forward(tensor, token.inputs, self.step, slot)
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(self._observer(slot, self.watch.readers(tensor) if self.watch else ()))
        self._last = (slot, outputs) if token.count < _MAX_ORDINAL else None

    def _observer(self, slot: OpSlot | LayerSlot, readers: Sequence[int] = ()) -> Callable[[torch.Tensor | None], None]:
        """A gradient hook that records the unscaled gradient of a result. It may be None: cuDNN's recurrent cells have
        no gradient for unused results."""
        gauge, watch, step = slot.gradient, self.watch, self.step

        @unserializable_hook  # no warning about our hook where the script pickles its results
        def observe(gradient: torch.Tensor | None) -> None:
            if gradient is None:
                return
            gauge.add(gradient, self.log2_scale)
            if watch and isinstance(slot, OpSlot):
                watch.backward(gradient, step, slot, readers)

        return observe

    def remove(self) -> None:
        self._last = None
        self.parameters.remove()


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; for a jagged nested tensor that of its packed values, which products use."""
    return tuple((tensor.values() if tensor.is_nested else tensor).shape)
