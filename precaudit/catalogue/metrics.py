"""The metrics that `compare` knows: what each one measures, and when it fails by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric fails when its value reaches the threshold; `default` None: listed, never failing by itself.

    `family` groups metrics of one cause for ranking. A `counted` metric counts its changes over the whole
    report; any other is judged change by change.
    """

    name: str
    family: str
    default: float | None
    help: str
    counted: bool = False


# Families in the order of the answer: proof first, then causes, then what they lead to.
FAMILIES = ("proof", "structure", "ranges", "plan", "speed")

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("verdict", "proof", 1, "steps down from pass to inconclusive, fail, cut short"),
        Metric("new_errors", "proof", 1, "errors that base does not have", True),
        Metric("new_warnings", "proof", None, "warnings that base does not have", True),
        Metric("new_notes", "proof", None, "notes that base does not have", True),
        Metric("nonfinite", "proof", 1, "tensors with inf or nan that had none in base", True),
        Metric("layers_replaced", "structure", 1, "layers of another type under the same name", True),
        Metric("layers_resized", "structure", 1, "layers with another number of parameters", True),
        Metric("alignment", "structure", 1, "ops with a dimension no longer a multiple of 8", True),
        Metric("layers_removed", "structure", 1, "layers that are missing in head", True),
        Metric("layers_added", "structure", 1, "layers that are new in head", True),
        Metric("layers_renamed", "structure", 1, "layers of the same structure, other name", True),
        Metric("ops", "structure", 1, "layers that call other operations", True),
        Metric("dtypes", "structure", 1, "layers that run in another dtype as written", True),
        Metric("constants", "structure", 2, "movement of an op's constant, such as an eps"),
        Metric("amax", "ranges", 2, "movement of the largest magnitude, beyond noise"),
        Metric("distance", "ranges", 2, "Wasserstein distance of the exponents, beyond noise"),
        Metric("amin", "ranges", None, "movement of the smallest magnitude, beyond noise"),
        Metric("vanished", "ranges", 1, "tensors that are all zero or not measured any more", True),
        Metric("headroom", "ranges", 2, "room lost below the planned format's maximum"),
        Metric("formats", "plan", 1, "layers planned in a wider format than in base", True),
        Metric("formats_changed", "plan", None, "layers planned in another format, not wider", True),
        Metric("op_exceptions", "plan", 1, "ops that newly leave their layer's format", True),
        Metric("loss_scale", "plan", 4, "movement of the loss scale or of an end of its window"),
        Metric("tensor_cores", "speed", 5, "loss of kernel time on native Tensor Cores, % points"),
        Metric("eligible_flops", "speed", 1, "loss of FLOPs that Tensor Cores can take, % points"),
        Metric("time", "speed", 20, "longer time, both measured on the same GPU"),
        Metric("memory", "speed", 10, "larger memory, both measured on the same device"),
    )
}
