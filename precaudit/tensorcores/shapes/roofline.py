"""Predicts the time of a training step on a card from the card's peaks.

Every product takes the longer of its arithmetic at the peak of its format and its memory traffic at full bandwidth;
everything else takes its traffic. Real kernels reach a fraction of both, so that ratios are more reliable than seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from precaudit.formats import FORMATS
from precaudit.hardware.peaks import Gpu
from precaudit.model import Layer, Op, Plan
from precaudit.model.fitting import format_of
from precaudit.reporting.costs import WORTH, worth
from precaudit.tensorcores.shapes.eligibility import flops, runs_in, runs_on_tensor_cores, total_flops
from precaudit.words import capitalized

METHOD = "predicted from the card's peaks and bandwidth, not measured"
BUSY = 0.5  # of a step that the GPU must work in; below, the host decides
BOUNDS = {
    "launch": "starting its many small kernels takes longer than running them",
    "memory": "it waits for memory more than for arithmetic",
    "arithmetic": "its products already run as fast as under the plan",
}

LAUNCH = 5e-6  # seconds from one launch to the next in eager PyTorch: an assumption, the host decides
BACKWARD = 2  # passes: gradients of the inputs, gradients of the weights
CAST_BYTES = 4 + 2 + 2 + 4  # a weight to half before the forward pass, its gradient back to float32 after
CAST_LAUNCHES = 2


@dataclass(frozen=True)
class StepPrediction:
    """Seconds of one training step. Launches overlap with the GPU's work, so the longer of the two counts."""

    seconds_matmul: float
    seconds_bandwidth: float
    seconds_launch: float
    seconds_cast: float

    @property
    def total(self) -> float:
        return max(self.seconds_launch, self.seconds_on_gpu)

    @property
    def bound(self) -> str:
        """The component that takes most of the step: one of `BOUNDS`."""
        if self.seconds_launch >= self.seconds_on_gpu:
            return "launch"
        return "memory" if self.seconds_bandwidth + self.seconds_cast > self.seconds_matmul else "arithmetic"

    @property
    def seconds_on_gpu(self) -> float:
        return self.seconds_matmul + self.seconds_bandwidth + self.seconds_cast


def predict_step(ops: Sequence[Op], layers: Sequence[Layer], plan: Plan, target: Gpu, steps: int = 1) -> StepPrediction:
    """The time of one step of an audit over `steps` steps, had it run on `target` under `plan`."""
    products = [op for op in ops if flops(op) is not None]
    others = [op for op in ops if flops(op) is None]
    casts = _casts(ops, layers, plan)
    bandwidth = target.bandwidth * 1e9
    seconds = (
        sum(product_seconds(op, plan, target) for op in products),
        (sum(_bytes(op, plan) for op in others) + sum(map(_optimizer_bytes, layers))) / bandwidth,
        sum(_passes(op) * op.calls for op in ops) * LAUNCH,
    )
    weights = sum(layer.parameters for layer in casts)
    return StepPrediction(
        seconds_matmul=seconds[0] / steps,
        seconds_bandwidth=seconds[1] / steps,
        seconds_launch=seconds[2] / steps + len(casts) * CAST_LAUNCHES * LAUNCH,
        seconds_cast=weights * CAST_BYTES / bandwidth,
    )


def in_words(before: StepPrediction, after: StepPrediction, target: Gpu) -> str:
    """A sentence that compares the plan with float32 (`before`)."""
    if not before.seconds_matmul:
        return f"Speed on {target.name}: no prediction, no product of known size was traced."
    faster = before.total / after.total
    if faster < WORTH:
        return f"No gain expected over float32 on {target.name}: {BOUNDS[after.bound]} ({METHOD})."
    return f"{faster:.2f}x the speed of float32 expected on {target.name} ({METHOD})."


def measured_in_words(speedup: float, spread: Sequence[float] | None, busy: float | None, gpu: Gpu) -> str:
    """The plan's measured speed over float32's; `busy` is the share of a step in which the GPU worked."""
    idle = (
        f" The GPU works {busy:.0%} of a step and waits for the host otherwise: larger batches, torch.compile or "
        "CUDA graphs help more than precision does."
        if busy is not None and busy < BUSY
        else ""
    )
    text = worth(speedup, spread, gpu.name)
    return f"{capitalized(text)}{idle}"


# ---------------------------------------------------------------- the parts of a step


def product_seconds(op: Op, plan: Plan, target: Gpu) -> float:
    """Over all audited steps, with aligned sizes."""
    format_name = runs_in(op, plan)
    if FORMATS[format_name].storage_bits == 8 and not runs_on_tensor_cores(op, plan, target):
        format_name = "bfloat16"  # what a float8 region runs its other operations in
    inside = replace(plan, default=format_name, modules={}, ops=())
    rate = target.rate(format_name) if runs_on_tensor_cores(op, inside, target) else target.vector
    return seconds_at(rate, op, plan, target)


def seconds_at(rate: float, op: Op, plan: Plan, target: Gpu) -> float:
    """The longer of the op's arithmetic at so many TFLOP/s and its memory traffic."""
    arithmetic = _passes(op) * total_flops(op) / (rate * 1e12)
    return max(arithmetic, _bytes(op, plan) / (target.bandwidth * 1e9))


def _passes(op: Op) -> float:
    """How many passes a call takes on average: forward and, where a gradient came back, backward. None comes back to
    what runs under `no_grad`, or is frozen from the inputs on."""
    result, gradient = op.tensor("activation"), op.tensor("activation_grad")
    if result is None or gradient is None or not result.stats.numel:
        return 1.0
    return 1.0 + BACKWARD * gradient.stats.numel / result.stats.numel


def _bytes(op: Op, plan: Plan) -> float:
    """Inputs read and result written, by every pass."""
    result = op.tensor("activation")
    read = sum(map(prod, op.shapes)) * op.calls
    return _passes(op) * (read + (result.stats.numel if result else 0)) * _width(op, plan)


def _width(op: Op, plan: Plan) -> int:
    """Bytes of a stored value: half precision where autocast would store one, and the plan asks for it."""
    return 2 if op.half and FORMATS[format_of(plan, op.fqn, op.op)].storage_bits < 32 else 4


def _optimizer_bytes(layer: Layer) -> float:
    """Over all audited steps: weights read and written, gradients read, every state read and written, in float32."""
    counted = {"weight": 2, "weight_grad": 1, "optimizer_state": 2}
    return 4.0 * sum(counted.get(record.role, 0) * record.stats.numel for record in layer.tensors)


def _casts(ops: Iterable[Op], layers: Iterable[Layer], plan: Plan) -> list[Layer]:
    """The layers whose float32 weights autocast turns into half at every step."""
    narrow = {
        op.fqn for op in ops if op.category == "lower" and FORMATS[format_of(plan, op.fqn, op.op)].storage_bits < 32
    }
    return [layer for layer in layers if layer.fqn in narrow and layer.parameters and layer.tied_to is None]
