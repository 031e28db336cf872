"""From a trace to Tensor Core usage: every kernel classified, timed, rated and given to its layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from precaudit.formats import ALIASES, FORMATS
from precaudit.model import Finding, Kernel, KernelTime, LayerTime, TensorCores, TimeShare
from precaudit.tensorcores.shapes.sizes import Product
from precaudit.tensorcores.traces.advice import advise
from precaudit.tensorcores.traces.attribution import OUTSIDE, UNATTRIBUTED, Attribution, attribute
from precaudit.tensorcores.traces.cards import Card, cards_of
from precaudit.tensorcores.traces.caveats import notes
from precaudit.tensorcores.traces.evidence import agreed, classify_ptx, inductor_class, second_opinion
from precaudit.tensorcores.traces.kernel_rules import Classification, classify
from precaudit.tensorcores.traces.products import product
from precaudit.tensorcores.traces.trace import Floats, Ints, ProfilerTrace

METHOD = "kernel times by torch.profiler; classes by kernel name, and by achieved rate where shapes are known"
NO_PTX: Mapping[str, Sequence[str]] = MappingProxyType({})
CLASSES = ("native", "legacy", "none", "unknown")
# Packed half-precision arithmetic on vector units reaches up to four times their float32 rate (A100).
_PACKED = MappingProxyType({"fp16": 4.0, "bf16": 4.0, "int8": 4.0})


@dataclass(frozen=True)
class Group:
    """Kernels of one name launched by one op in one layer, on one kind of GPU."""

    name: str
    op: str | None
    owner: str
    in_module: bool
    calls: int
    seconds: float
    flops: float | None
    found: Classification
    card: Card
    example: Product | None = None

    @property
    def tflops(self) -> float | None:
        return self.flops / self.seconds / 1e12 if self.flops and self.seconds else None

    @property
    def operands(self) -> str | None:
        """The format by the kernel's name, or else by the product that it is for."""
        return self.found.operands or (self.example.format if self.example else None)

    @property
    def peak(self) -> float | None:
        """TFLOP/s of the fastest unit that takes the kernel's operands, float32 if unknown; None where it isn't
        listed."""
        name, gpu = ALIASES.get(self.operands or "", self.operands or "float32"), self.card.gpu
        if gpu is None:
            return None
        return gpu.rate(name) if name in FORMATS else gpu.peak(name)

    @property
    def peak_share(self) -> float | None:
        return self.tflops / self.peak if self.tflops and self.peak else None


@dataclass(frozen=True)
class Analysis:
    """The analysis of a trace; `tensor_cores` is the part that reports have too. `used` is the share of the time on
    Tensor Cores, including that by unknown paths; `nvidia` says whether any card is NVIDIA's."""

    source: str
    tensor_cores: TensorCores
    findings: tuple[Finding, ...]
    seconds: float
    calls: int
    used: float
    nvidia: bool


def analyse(trace: ProfilerTrace, target: str | None = None, ptx: Mapping[str, Sequence[str]] = NO_PTX) -> Analysis:
    """Tensor Core usage of a trace; `target` names its GPU where the trace itself doesn't, `ptx` has what Triton's
    kernels were compiled to, by name."""
    cards = cards_of(trace, target)
    groups = group_kernels(trace, cards, attribution := attribute(trace), ptx)
    total = float(trace.kernels.seconds.sum())
    layers = _layers(groups, total)
    names = " and ".join(card.name for card in cards if card.name) or None
    nvidia = any(card.nvidia for card in cards)
    usage = TensorCores(
        measured=True,
        method=METHOD if nvidia else f"not an NVIDIA GPU ({names}): it has no Tensor Cores to measure",
        time_share=_time_share(groups),
        unattributed_share=_unattributed(trace, attribution),
        eligible_flops_share=_eligible(groups),
        kernels=tuple(_kernel(group) for group in groups),
        device=names,
        layers=layers,
        notes=tuple(notes(trace, cards, groups, attribution)),
    )
    on = sum(group.seconds for group in groups if group.found.used) / (total or 1.0)
    return Analysis(trace.source, usage, advise(groups, total), total, len(trace.kernels.seconds), on, nvidia)


# ---------------------------------------------------------------- grouping


def group_kernels(
    trace: ProfilerTrace, cards: Sequence[Card], attribution: Attribution, ptx: Mapping[str, Sequence[str]]
) -> list[Group]:
    """Kernels of one name, card, op and owner as one group, the slowest first."""
    kernels = trace.kernels
    kinds = list(zip(kernels.name.tolist(), kernels.device.tolist(), strict=True))
    classes = {(name, card): _class_of(trace.names[name], cards[card], ptx) for name, card in set(kinds)}
    flops = _kernel_flops(trace, attribution.op, [classes[kind] for kind in kinds])
    op_name = np.where(attribution.op >= 0, trace.ops.name[attribution.op] if len(trace.ops) else -1, -1)
    keys = np.stack([kernels.name, op_name, attribution.owner, attribution.is_module, kernels.device], axis=1)
    unique, first, member, calls = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    member = member.reshape(-1)
    seconds = np.bincount(member, weights=kernels.seconds)
    rated = np.isfinite(flops)
    rated_flops = np.bincount(member, weights=np.where(rated, flops, 0.0))
    rated_seconds = np.bincount(member, weights=np.where(rated, kernels.seconds, 0.0))
    mixed = np.bincount(member, weights=_shares_flops(attribution.op, kernels.name, rated))
    groups = []
    for i, (name, op, owner, in_module, card) in enumerate(unique.tolist()):
        example = int(attribution.op[first[i]])
        known = rated_seconds[i] > 0
        total = float(rated_flops[i] * seconds[i] / rated_seconds[i]) if known else None
        group = Group(
            name=trace.names[name],
            op=trace.names[op] if op >= 0 else None,
            owner=attribution.owners[owner],
            in_module=bool(in_module),
            calls=int(calls[i]),
            seconds=float(seconds[i]),
            flops=total,
            found=_class_by_op(classes[name, card], trace, example, cards[card]),
            card=cards[card],
            example=_product_of(trace, example),
        )
        groups.append(group if mixed[i] else _second_look(group))
    return sorted(groups, key=lambda group: -group.seconds)


def _class_of(name: str, card: Card, ptx: Mapping[str, Sequence[str]]) -> Classification:
    """By PTX where all kernels compiled under the name agree, else by the name."""
    versions = [classify_ptx(name, text, card.capability) for text in ptx.get(name, ())] if card.nvidia else []
    found = agreed(versions) or classify(name, card.capability, nvidia=card.nvidia)
    if card.nvidia and not card.tensor_cores:
        return replace(found, tensor_core="none", generation=None, used=False)
    return found


def _class_by_op(found: Classification, trace: ProfilerTrace, op: int, card: Card) -> Classification:
    if op < 0 or not card.tensor_cores:
        return found
    return inductor_class(found, trace.names[trace.ops.name[op]], trace.arguments.get(op), card.capability)


def _kernel_flops(trace: ProfilerTrace, op: Ints, classes: Sequence[Classification]) -> Floats:
    """FLOPs of every kernel: its op's, shared out by time among the kernels of the op that compute; NaN if unknown.

    A kernel that no rule knows computes when no other kernel of its op does.
    """
    flops, seconds = np.full(len(op), np.nan), trace.kernels.seconds
    if not trace.arguments:
        return flops
    of_op = np.full(len(trace.ops), np.nan)
    known_products: dict[tuple[int, int], float] = {}
    for index, given in trace.arguments.items():
        key = (int(trace.ops.name[index]), id(given))
        if key not in known_products:
            found = _product_of(trace, index)
            known_products[key] = found.flops if found else np.nan
        of_op[index] = known_products[key]
    timed = (op >= 0) & (seconds > 0)
    known = timed & np.array([found.matmul for found in classes], dtype=bool)
    settled = np.isin(op, op[known])
    guessed = timed & ~settled & np.array([found.tensor_core == "unknown" for found in classes], dtype=bool)
    mine = np.flatnonzero(known | guessed)
    spent = np.bincount(op[mine], weights=seconds[mine], minlength=len(of_op))
    flops[mine] = of_op[op[mine]] * seconds[mine] / spent[op[mine]]
    return flops


def _shares_flops(op: Ints, name: Ints, rated: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether other kernels compute parts of the same op: their common rate proves nothing of either, as of the
    gradients of a convolution, or of a transformed one, whose product is of less than the op's FLOPs."""
    span = int(name.max(initial=0)) + 1
    pairs = np.sort(op[rated] * span + name[rated])  # numpy's unique takes twenty times as long
    ops = pairs[np.diff(pairs, prepend=-1) > 0] // span
    shared = ops[1:][np.diff(ops) == 0]
    return rated & np.isin(op, shared)


def _product_of(trace: ProfilerTrace, index: int) -> Product | None:
    arguments = trace.arguments.get(index)
    return product(trace.names[trace.ops.name[index]], arguments) if arguments else None


def _second_look(group: Group) -> Group:
    """The group with the class that its rate allows."""
    card = group.card
    if card.gpu is None or group.tflops is None:
        return group
    operands = group.operands or "fp32"
    vector = card.gpu.vector * _PACKED.get(operands, 1.0)
    return replace(group, found=second_opinion(group.found, group.tflops, vector, card.peak(operands)))


# ---------------------------------------------------------------- summing up


def _time_share(groups: Sequence[Group]) -> TimeShare:
    seconds = {label: sum(g.seconds for g in groups if g.found.tensor_core == label) for label in CLASSES}
    total = sum(seconds.values()) or 1.0
    return TimeShare(**{label: value / total for label, value in seconds.items()})


def _unattributed(trace: ProfilerTrace, attribution: Attribution) -> float | None:
    """Share of the launched kernels' time that no module (or, in a trace without modules, no op) accounts for."""
    seconds, launched = trace.kernels.seconds, attribution.launched
    lost = [UNATTRIBUTED, OUTSIDE] if len(trace.scopes) else [UNATTRIBUTED]
    numbers = [i for i, name in enumerate(attribution.owners) if i >= len(trace.names) and name in lost]
    total = float(seconds[launched].sum())
    return float(seconds[launched & np.isin(attribution.owner, numbers)].sum()) / total if total else None


def _eligible(groups: Sequence[Group]) -> float | None:
    """Share of the known FLOPs whose operands Tensor Cores of their GPU take, in the formats of the trace."""
    known = [g for g in groups if g.flops and g.card.nvidia and g.card.gpu]
    total = sum(g.flops or 0.0 for g in known)
    fits = sum(g.flops or 0.0 for g in known if _takes(g))
    return fits / total if total else None


def _takes(group: Group) -> bool:
    known = group.example
    return group.found.used or bool(known and known.reduces and known.format and group.card.peak(known.format))


def _kernel(group: Group) -> Kernel:
    return Kernel(
        name=group.name,
        tensor_core=group.found.tensor_core,
        rule=group.found.rule,
        calls=group.calls,
        seconds=group.seconds,
        generation=group.found.generation,
        operands=group.found.operands,
        library=group.found.library,
        fqn=group.owner if group.in_module else None,
        op=group.op,
        tflops=group.tflops,
        peak_share=group.peak_share,
    )


def _layers(groups: Iterable[Group], total: float) -> tuple[LayerTime, ...]:
    """The time of each module or bucket, the slowest first."""
    owners: dict[tuple[str, bool], list[Group]] = {}
    for group in groups:
        owners.setdefault((group.owner, group.in_module), []).append(group)
    found = (_layer(owner, in_module, mine, total) for (owner, in_module), mine in owners.items())
    return tuple(sorted(found, key=lambda layer: -layer.time.seconds))


def _layer(owner: str, in_module: bool, groups: Sequence[Group], total: float) -> LayerTime:
    time = _time(groups)
    return LayerTime(owner, time, in_module, time.seconds / total if total else 0.0, sum(g.calls for g in groups))


def _time(groups: Sequence[Group]) -> KernelTime:
    rated = [g for g in groups if g.flops]
    flops, spent = sum(g.flops or 0.0 for g in rated), sum(g.seconds for g in rated)
    at_peak = [g.flops / g.peak / 1e12 for g in rated if g.flops and g.peak]
    return KernelTime(
        seconds=sum(g.seconds for g in groups),
        time_share=_time_share(groups),
        flops=flops or None,
        tflops=flops / spent / 1e12 if spent else None,
        peak_share=sum(at_peak) / spent if at_peak and len(at_peak) == len(rated) else None,
    )
