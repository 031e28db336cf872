"""Converts the tracer's slots to a Trace: layers and operations with final names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import reduce

from torch import nn

from precaudit.formats import NARROW_FORMATS
from precaudit.histograms import fits
from precaudit.instrument.names import ModuleName, ModuleNames, is_leaf
from precaudit.model import Layer, Location, Op, Role, TensorRecord, TensorStats
from precaudit.tracing.extremes import largest_by_name
from precaudit.tracing.merging import merged_op
from precaudit.tracing.records import Trace, stands_alone
from precaudit.tracing.slots import LayerSlot, OpSlot, ParameterSlot, fold
from precaudit.tracing.tracer import Tracer


def _record(role: Role, stats: TensorStats, name: str = "", dtype: str = "float32") -> list[TensorRecord]:
    if not stats.numel:
        return []
    return [TensorRecord(role, stats, name, dtype, fits(stats, NARROW_FORMATS))]


def _merged(parts: Iterable[TensorStats]) -> TensorStats:
    total = TensorStats()
    for part in parts:
        total = total.merge(part)
    return total


class _Namer:
    """Module names as in the report: prefixed by the model's name only where there are several models. A module that
    ran before it became part of a model has its name in that model."""

    def __init__(self, tracer: Tracer, names: ModuleNames) -> None:
        self.latest = names.latest
        slots = [(self.latest(slot.module).model, slot) for slot in tracer.parameters.slots.values()]
        parametric = {model for model, _ in slots}
        ran = [model for name in tracer.layers if (model := self.latest(name).model) in parametric]
        trained = [model for model, slot in slots if slot.gradient.stats().numel]
        self.models = tuple(dict.fromkeys([*trained, *ran]))

    def fqn(self, name: ModuleName) -> str:
        name = self.latest(name)
        return name.fqn if stands_alone(name.model, self.models) else name.qualified

    def is_planned(self, name: ModuleName) -> bool:
        return self.latest(name).model in self.models


def snapshot(tracer: Tracer, names: ModuleNames) -> Trace:
    """The trace so far; the tracer may continue afterwards."""
    tracer.parameters.flush()
    fold(tracer.gauges)
    namer = _Namer(tracer, names)
    faults = tracer.watch.faults if tracer.watch else []
    ops = _ops(tracer, namer)
    return Trace(
        layers=tuple(_layers(tracer, namer)),
        ops=tuple(reduce(merged_op, parts) for parts in ops),
        lines=tuple(line for parts in ops for line in _by_line(parts)),
        maxima=tuple(tracer.maxima),
        audited_steps=tracer.audited_steps,
        low_dtypes=tuple(sorted(tracer.low_dtypes)),
        models=namer.models,
        leaves=tuple(_leaves(tracer, names, namer)),
        unseen=tuple(_unseen(tracer, names, namer)),
        faults=tuple(replace(fault, fqn=namer.fqn(ModuleName(fault.model, fault.fqn))) for fault in faults),
        bypassed={namer.fqn(name): Location(*place) for name, place in tracer.bypassed.items()},
    )


def _leaves(tracer: Tracer, names: ModuleNames, namer: _Namer) -> list[str]:
    """All leaf modules of the planned models, even if never called, and modules that compute outside their children,
    even if only without gradients (augmentation): each has an entry in the plan."""
    computing = {namer.latest(name) for name in tracer.computing}
    return [
        namer.fqn(names.of(module))
        for name, model in names.models.items()
        if name in namer.models
        for module in model.modules()
        if names.of(module) in computing or is_leaf(module)
    ]


def _unseen(tracer: Tracer, names: ModuleNames, namer: _Namer) -> Iterator[str]:
    """Leaves with parameters that never computed in training, such as a head for sampling, unless other modules use
    their parameters, as attention uses those of its `out_proj`."""
    used = {namer.latest(name) for name in tracer.ran}
    used |= {namer.latest(s.module) for s in tracer.parameters.slots.values() if s.gradient.stats().numel}
    for name, model in names.models.items():
        for module in model.modules() if name in namer.models else ():
            own = {id(parameter) for parameter in module.parameters()}
            forward = getattr(type(module), "forward", None)  # the class of a traced module has none to look at
            computes = forward is not nn.Module.forward and own and not own & tracer.read
            if computes and names.of(module) not in used and is_leaf(module):
                yield namer.fqn(names.of(module))


def _layers(tracer: Tracer, namer: _Namer) -> list[Layer]:
    computing = {namer.latest(slot.module) for slot in tracer.ops.values() if slot.calls}
    grouped: dict[ModuleName, list[LayerSlot]] = {}
    for name, layer in tracer.layers.items():
        grouped.setdefault(namer.latest(name), []).append(layer)
    owners: dict[ModuleName, list[ParameterSlot]] = {}
    for parameter in tracer.parameters.slots.values():
        owners.setdefault(_user(namer.latest(parameter.module), parameter, grouped), []).append(parameter)
    return [
        _layer(slots, owners.get(name, []), tracer, namer)
        for name, slots in grouped.items()
        if slots[-1].leaf or name in computing or name in owners
    ]


def _user(name: ModuleName, parameter: ParameterSlot, ran: Collection[ModuleName]) -> ModuleName:
    """The module that uses a parameter: its own or, where that never runs (a `ParameterList`, attention's `out_proj`),
    the innermost enclosing one that does."""
    if not parameter.gradient.stats().numel:
        return name
    while name.fqn and name not in ran:
        name = ModuleName(name.model, name.fqn.rpartition(".")[0])
    return name


def _layer(slots: list[LayerSlot], parameters: list[ParameterSlot], tracer: Tracer, namer: _Namer) -> Layer:
    """A module's record, merged over all its names."""
    slot = slots[-1]
    shared = list({key: op for part in slots for key, op in part.shared_with.items()}.values())
    parts: list[LayerSlot | OpSlot] = [*slots, *shared]
    activation = _merged(part.activation.stats() for part in parts)
    gradient = _merged(part.gradient.stats() for part in parts)
    dtype = shared[0].dtype if shared else "float32"
    tensors = _record("activation", activation, dtype=dtype) + _record("activation_grad", gradient, dtype=dtype)
    for parameter in parameters:
        inner = namer.latest(parameter.module).fqn.removeprefix(namer.latest(slot.module).fqn)
        tensors += _parameter_records(parameter, f"{inner}.{parameter.name}".lstrip("."))
    tied = next((tracer.parameters.tied[part.module] for part in slots if part.module in tracer.parameters.tied), None)
    return Layer(
        fqn=namer.fqn(slot.module),
        type=slot.type,
        parameters=sum(parameter.numel for parameter in parameters),
        calls=sum(part.calls for part in slots),
        tensors=tuple(tensors),
        model=namer.latest(slot.module).model,
        tied_to=namer.fqn(tied) if tied else None,
        trained=namer.is_planned(slot.module),
        leaf=slot.leaf,
        absorbed_update=largest_by_name([parameter.absorbed for parameter in parameters]),
    )


def _parameter_records(slot: ParameterSlot, name: str) -> list[TensorRecord]:
    records = _record("weight", slot.weight.stats(), name, slot.dtype)
    records += _record("weight_grad", slot.gradient.stats(), name, slot.dtype)
    for key, gauge in slot.state.items():
        records += _record("optimizer_state", gauge.stats(), f"{name}.{key}", slot.state_dtypes[key])
    return records + _record("update", slot.update.stats(), name, slot.dtype)


def _ops(tracer: Tracer, namer: _Namer) -> list[list[Op]]:
    """The records of single slots, by operation."""
    grouped: dict[tuple[ModuleName, str], list[OpSlot]] = {}
    for (module, op, _), slot in tracer.ops.items():
        if slot.calls:
            grouped.setdefault((namer.latest(module), op), []).append(slot)
    return [[_op(namer.fqn(name), slot) for slot in slots] for (name, _), slots in grouped.items()]


def _by_line(parts: Iterable[Op]) -> list[Op]:
    """An operation by line, if there are several and not all results are half."""
    lines: dict[Location | None, Op] = {}
    for part in parts:
        lines[part.location] = merged_op(lines[part.location], part) if part.location in lines else part
    return list(lines.values()) if len(lines) > 1 and not all(op.half for op in lines.values()) else []


def _op(fqn: str, slot: OpSlot) -> Op:
    """The record of a single slot's calls."""
    activation = slot.activation.stats()
    return Op(
        fqn=fqn,
        op=slot.op,
        calls=slot.calls,
        category=slot.category,
        location=slot.location,
        tensors=tuple(
            _record("activation", activation, dtype=slot.dtype)
            + _record("activation_grad", slot.gradient.stats(), dtype=slot.dtype)
        ),
        input_amax=slot.input_amax,
        shapes=slot.shapes,
        dtype=slot.dtype,
        flops=slot.flops,
        local_error=slot.local_error,
        half=slot.half,
        constants=slot.constants,
        integer_amax=slot.integer_input,
        autocast=slot.autocast,
        follows_dtype=slot.follows_dtype,
        half_amax=activation.amax if slot.half else None,
        in_place=slot.in_place,
    )
