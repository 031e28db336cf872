"""Changes of Tensor Core use, time and memory, compared only between equal devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from precaudit.comparison.changes import Change
from precaudit.model import Report
from precaudit.reporting.facts import figures
from precaudit.words import seconds, size

# Keys of `environment` that say on what was measured; each must agree, and the first must be there.
DEVICE_KEYS = ("device", "capability", "processor", "cpus")
# Metrics where more is worse: their key in `performance`, whose value has numbers by precision, and words.
COSTS: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "time": ("step_seconds", "the time of a step", seconds),
    "memory": ("peak_memory_bytes", "peak memory", size),
}
# What the same job on the same device moves by from day to day, in per cent or points.
NOISE = {"time": 5.0, "memory": 2.0, "tensor_cores": 1.0, "eligible_flops": 0.1}


def speed_changes(base: Report, head: Report) -> Iterator[Change]:
    if base.tensor_cores.device == head.tensor_cores.device:
        native = (native_share(side) for side in (base, head))
        yield from _share_lost("tensor_cores", "of kernel time on native Tensor Cores", *native)
    eligible = (side.tensor_cores.eligible_flops_share for side in (base, head))
    yield from _share_lost("eligible_flops", "of FLOPs can run on Tensor Cores", *eligible)
    for metric, precision, before, after in comparable_costs(base, head):
        percent = 100 * (after / before - 1) if before > 0 else 0.0
        if percent > NOISE[metric]:
            _, what, show = COSTS[metric]
            message = f"{what} ({precision}): {show(before)} became {show(after)}, {percent:.0f}% more"
            yield Change(metric, percent, message, base=before, head=after)


def measured(metric: str, base: Report, head: Report) -> bool:
    """Whether both reports have a figure for this metric that can be compared; other modules' metrics always do."""
    cores = base.tensor_cores, head.tensor_cores
    if metric == "tensor_cores":
        return None not in map(native_share, (base, head)) and cores[0].device == cores[1].device
    if metric == "eligible_flops":
        return all(side.eligible_flops_share is not None for side in cores)
    return metric not in COSTS or any(metric == name for name, *_ in comparable_costs(base, head))


def native_share(report: Report) -> float | None:
    """The share of measured kernel time on native Tensor Cores."""
    cores = report.tensor_cores
    return cores.time_share.native if cores.measured and cores.time_share else None


def _share_lost(metric: str, what: str, before: float | None, after: float | None) -> Iterator[Change]:
    if before is not None and after is not None and 100 * (before - after) > NOISE[metric]:
        message = f"{100 * after:.1f}% {what}, {100 * before:.1f}% in base"
        yield Change(metric, 100 * (before - after), message, base=before, head=after)


def comparable_costs(base: Report, head: Report) -> Iterator[tuple[str, str, float, float]]:
    """(metric, precision, base, head) of every cost that both measured on one device; CPU times say nothing, nor does
    the memory of a process with another torch."""
    if why_not_comparable(base, head):
        return
    for metric, (key, *_) in COSTS.items():
        old, new = figures(base.performance.get(key)), figures(head.performance.get(key))
        for name in old:
            if name in new and not (_on_cpu(head) and (metric == "time" or _other_torch(base, head))):
                yield metric, name, old[name], new[name]


def _other_torch(base: Report, head: Report) -> bool:
    """On a CPU memory is the whole process's, much of it torch itself."""
    return bool(base.environment.get("torch") != head.environment.get("torch"))


def _on_cpu(report: Report) -> bool:
    return str(report.environment.get("device", "")).startswith("cpu")


def why_not_comparable(base: Report, head: Report) -> str:
    """Why time and memory can't be compared, or an empty string."""
    first = DEVICE_KEYS[0]
    if not base.environment.get(first) or not head.environment.get(first):
        return "time and memory: a report does not say on which device it was measured"
    for key in DEVICE_KEYS:
        old, new = base.environment.get(key), head.environment.get(key)
        if old != new:
            return f"time and memory: measured on different devices ({key}: {old} and {new})"
    return ""


def not_comparable(base: Report, head: Report) -> Iterator[str]:
    """Which of this module's metrics could not be compared, and why."""
    if reason := why_not_comparable(base, head):
        yield reason
    elif _on_cpu(head):
        yield "time: measured on a CPU, where it moves with the load of the machine"
        if _other_torch(base, head):
            yield "memory: on a CPU the whole process's, torch included, and torch is another one"
    missing = [name for name, side in (("base", base), ("head", head)) if native_share(side) is None]
    if missing:
        yield f"Tensor Core share: not measured in {' and '.join(missing)}"
    elif base.tensor_cores.device != head.tensor_cores.device:
        yield f"Tensor Core share: measured on {base.tensor_cores.device} and {head.tensor_cores.device}"
