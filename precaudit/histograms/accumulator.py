"""Statistics over many tensors, whatever their dtypes, devices and scales."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from precaudit.formats import get_format
from precaudit.histograms.layout import PEAK, Layout, Row
from precaudit.histograms.memory import flat, in_transform, is_readable, lie_alike, outside_transforms
from precaudit.histograms.plain import PlainSums
from precaudit.model import FormatFit, TensorStats

# Neither a subclass's nor a mode's Python code takes part in looking at a tensor.
_DisableTorchFunction = torch._C.DisableTorchFunction
_LOG = logging.getLogger(__name__)


class Sums(Protocol):
    """Interface of the kernels: sums over flat tensors of one dtype on one device."""

    def add(self, values: Tensor) -> int | None: ...

    def add_difference(self, new: Tensor, old: Tensor) -> int | None: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def numel(self) -> int: ...

    @property
    def rows(self) -> list[Row] | Tensor: ...


class Accumulator:
    """Statistics of every value added, a few kilobytes a dtype on the tensors' device; for one thread at a time.

    Nothing waits for a device before `stats`. Complex values count as their two parts, sparse tensors with
    their stored values only, DTensors with this rank's shard; meta and fake tensors and freed storage have
    no values to count. Integers and booleans raise `TypeError`.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[torch.dtype, torch.device, int], Sums] = {}

    def add(self, tensor: Tensor, log2_scale: int = 0) -> int | None:
        """Add the tensor's values times 2**log2_scale; returns how many are non-finite.

        None where that would need a synchronization with the device.
        """
        with _DisableTorchFunction():
            if is_readable(tensor) and not in_transform():
                return self._of(tensor, log2_scale).add(tensor)
            with outside_transforms():
                values = flat(tensor)
                return 0 if values is None else self._of(values, log2_scale).add(values)

    def add_difference(self, new: Tensor, old: Tensor, log2_scale: int = 0) -> int | None:
        """Like `add(new - old)`; contiguous float32 tensors on CPU are subtracted on the fly, without a temporary."""
        with _DisableTorchFunction():
            if lie_alike(new, old) and not in_transform():
                return self._of(new, log2_scale).add_difference(new, old)
            with torch.no_grad():
                difference = _subtractable(new) - _subtractable(old)
            return self.add(difference, log2_scale)

    def add_and_copy(self, tensor: Tensor, copy: Tensor) -> None:
        """Like `add`; also copies the values into `copy`, in the same pass over contiguous float32 tensors on CPU."""
        with _DisableTorchFunction():
            if lie_alike(tensor, copy) and tensor.device.type == "cpu" and _has_numba() and not in_transform():
                self._of(tensor, 0).add_copied(tensor, copy)  # type: ignore[attr-defined]
                return
            self.add(tensor)
            with torch.no_grad():
                copy.copy_(tensor)

    def entry(self, values: Tensor, old: Tensor | None, log2_scale: int) -> tuple[int, int, int, int] | None:
        """The kernel's table entry of a tensor, counted as added; None where it must be added by itself."""
        if not values.is_cuda or in_transform():
            return None
        if not (is_readable(values) if old is None else lie_alike(values, old)):
            return None
        if not _has_triton(values.dtype, values.device):
            return None
        return self._of(values, log2_scale).entry(values, old)  # type: ignore[attr-defined]

    def stats(self) -> TensorStats:
        """The statistics so far. Only this and `collect` synchronize with devices."""
        return collect([self])[0]

    def parts(self) -> list[tuple[int, Sums]]:
        """The sums, by the log2_scale of the values added to them."""
        return [(scale, sums) for (_, _, scale), sums in self._sums.items()]

    def _of(self, values: Tensor, log2_scale: int) -> Sums:
        key = (values.dtype, values.device, log2_scale)
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = _new_sums(values.dtype, values.device)
        return sums


class Addition(NamedTuple):
    """Values to be added to a slot, minus `old` if that is given."""

    slot: Accumulator
    values: Tensor
    old: Tensor | None = None
    log2_scale: int = 0

    def make(self) -> None:
        if self.old is None:
            self.slot.add(self.values, self.log2_scale)
        else:
            self.slot.add_difference(self.values, self.old, self.log2_scale)


def add_all(additions: Iterable[Addition]) -> None:
    """Execute the additions; those of GPU tensors by one kernel launch for each dtype."""
    together: dict[tuple[torch.dtype, torch.device, bool], list[tuple[int, int, int, int]]] = {}
    additions = list(additions)  # keeps the memory alive until it has been read
    for each in additions:
        with _DisableTorchFunction():
            entry = each.slot.entry(each.values, each.old, each.log2_scale)
        if entry is None:
            each.make()
        else:
            key = (each.values.dtype, each.values.device, each.old is not None)
            together.setdefault(key, []).append(entry)
    for (dtype, device, subtract), entries in together.items():
        from precaudit.histograms.gpu import add_many

        add_many(dtype, device, entries, subtract)


@dataclass(frozen=True)
class Peak:
    """The largest finite magnitude of several slots, possibly still on a device: its bits, by layout and scale."""

    parts: tuple[tuple[Layout, int, int | Tensor], ...]

    def value(self) -> float:
        """The magnitude; synchronizes with the device."""
        return max((math.ldexp(layout.value_of(int(bits)), -scale) for layout, scale, bits in self.parts), default=0.0)


def take_peak(slots: Iterable[Accumulator]) -> Peak:
    """The largest magnitude added since this was last called; doesn't synchronize with the device."""
    found: list[tuple[Layout, int, int | Tensor]] = []
    away: dict[tuple[torch.device, Layout, int], list[Tensor]] = {}
    for scale, sums in [part for slot in slots for part in slot.parts()]:
        held = sums.rows
        if isinstance(held, Tensor):
            away.setdefault((held.device, sums.layout, scale), []).append(held[PEAK])
            continue
        found.append((sums.layout, scale, max(int(row[PEAK]) for row in held)))
        for row in held:
            row[PEAK] = 0
    with _DisableTorchFunction(), torch.no_grad(), outside_transforms():
        for (_, layout, scale), peaks in away.items():
            found.append((layout, scale, torch.stack(peaks).amax()))
            torch._foreach_zero_(peaks)
    return Peak(tuple(found))


def collect(accumulators: Sequence[Accumulator]) -> list[TensorStats]:
    """The `stats` of many slots, with one copy from each device."""
    parts = [accumulator.parts() for accumulator in accumulators]
    fetched = _fetched([sums for part in parts for _, sums in part])
    return [
        _merged([(scale, sums.layout.stats(sums.numel, fetched[id(sums)])) for scale, sums in part]) for part in parts
    ]


def _merged(parts: list[tuple[int, TensorStats]]) -> TensorStats:
    stats = [part.shift(-scale) if scale else part for scale, part in parts]
    return reduce(TensorStats.merge, stats) if stats else TensorStats()


def _fetched(every: list[Sums]) -> dict[int, list[Row]]:
    """Every sums' rows on the host, by identity."""
    rows: dict[int, list[Row]] = {}
    away: dict[tuple[torch.device, Layout], list[tuple[int, Tensor]]] = {}
    for sums in every:
        held = sums.rows
        if isinstance(held, Tensor):
            away.setdefault((held.device, sums.layout), []).append((id(sums), held))
        else:
            rows[id(sums)] = held
    for (device, _), members in away.items():
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the sums may have been added to on other streams
        with outside_transforms(), torch.no_grad():
            together = torch.stack([row for _, row in members]).cpu().numpy()
        rows.update((key, [row]) for (key, _), row in zip(members, together, strict=True))
    return rows


def observe(tensor: Tensor) -> TensorStats:
    """Statistics of one tensor's values."""
    accumulator = Accumulator()
    accumulator.add(tensor)
    return accumulator.stats()


def fits(stats: TensorStats, names: Iterable[str]) -> dict[str, FormatFit]:
    """The fit of the measured values to the formats with these names."""
    targets = {name: get_format(name) for name in names}
    return {
        name: FormatFit(stats.overflow_rate(target), stats.underflow_rate(target), stats.flushed_energy(target))
        for name, target in targets.items()
    }


def _subtractable(tensor: Tensor) -> Tensor:
    """torch has no arithmetic of 8-bit floats."""
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.detach().float() if narrow else tensor.detach()


def _new_sums(dtype: torch.dtype, device: torch.device) -> Sums:
    """The fastest kernel that works on this device."""
    if device.type == "cpu" and _has_numba():
        from precaudit.histograms.cpu import CpuSums

        return CpuSums(dtype)
    with torch.inference_mode(False):  # tensors created in inference mode can't be changed outside it
        if device.type == "cuda" and _has_triton(dtype, device):
            from precaudit.histograms.gpu import TritonSums

            return TritonSums(dtype, device)
        return PlainSums(dtype, device)


@cache
def _has_numba() -> bool:
    try:
        import precaudit.histograms.cpu  # noqa: F401
    except ImportError as error:
        _LOG.info("numba is not usable (%s): tensors on the CPU are counted by torch, some ten times slower", error)
        return False
    return True


@cache
def _has_triton(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether Triton works, which only a test run shows: it may be missing, lack a C compiler, not support the GPU, or
    have another launch interface in another release."""
    try:
        from precaudit.histograms.gpu import check

        check(dtype, device)
    except Exception as error:
        _LOG.warning(
            "Triton is not usable for %s on %s (%s): its tensors are counted by torch, some 30 times slower",
            dtype,
            device,
            error,
        )
        return False
    return True
