"""The Tensor Core usage in a report, from kernels of a few profiled steps before and after the plan or from shapes, and
what the roofline predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from precaudit.hardware.peaks import Gpu
from precaudit.measuring.records import FLOAT32, PLAN, ByArm, Performance, Profiled
from precaudit.model import KernelTime, Layer, LayerTime, Op, Plan, TensorCores
from precaudit.tensorcores.shapes.roofline import StepPrediction, in_words, measured_in_words, predict_step


def usage(profiled: Mapping[str, Profiled], eligible: float | None, target: Gpu, speed: str) -> TensorCores:
    """The usage; `eligible` is the share of FLOPs that Tensor Cores can run, `speed` a sentence on the plan's speed."""
    shown = profiled.get(PLAN) or profiled.get(FLOAT32)
    if shown is None or not shown.tensor_cores.measured:
        why = shown.tensor_cores.method if shown else "no kernels were timed"
        method = f"{why}; eligibility on {target.name} follows from shapes"
        return TensorCores(method=method, eligible_flops_share=eligible, device=target.name, notes=(speed,))
    name = PLAN if PLAN in profiled else FLOAT32
    found, before = shown.tensor_cores, profiled.get(FLOAT32)
    earlier, later = (before.tensor_cores.layers if before else ()), (found.layers if name == PLAN else ())
    return replace(
        found,
        method=f"{found.method}; {shown.steps} steps {'under the plan' if name == PLAN else 'in float32'}",
        eligible_flops_share=eligible,
        layers=_before_and_after(earlier, later),
        notes=(speed, *found.notes),
    )


def _before_and_after(before: Sequence[LayerTime], after: Sequence[LayerTime]) -> tuple[LayerTime, ...]:
    """The layers of `after` (under the plan) with their float32 time, and those with time in float32 only."""
    earlier = {(layer.fqn, layer.module): layer.time for layer in before}
    kept = tuple(replace(layer, before=earlier.pop((layer.fqn, layer.module), None)) for layer in after)
    gone = (
        LayerTime(fqn, KernelTime(0.0, time.time_share), module, before=time) for (fqn, module), time in earlier.items()
    )
    return (*kept, *gone)


def speed_note(figures: Performance, target: Gpu, card: Gpu | None, predicted: Mapping[str, StepPrediction]) -> str:
    """The sentence on speed: measured if the target is this machine's card, else predicted."""
    measured = figures.speedup[PLAN]
    if measured is not None and card is target:
        busy = (figures.gpu_busy_share or {}).get(PLAN)
        return measured_in_words(measured, figures.speedup_quartiles[PLAN], busy, target)
    return in_words(predicted[FLOAT32], predicted[PLAN], target)


def predictions(
    ops: Sequence[Op], layers: Sequence[Layer], plan: Plan, card: Gpu, steps: int
) -> dict[str, StepPrediction]:
    """Predicted times of a step in float32 and under the plan."""
    return {
        FLOAT32: predict_step(ops, layers, Plan(), card, steps),
        PLAN: predict_step(ops, layers, plan, card, steps),
    }


def compared(figures: Performance, predicted: Mapping[str, StepPrediction], measured: ByArm, card: Gpu) -> Performance:
    """The figures with predicted seconds, and their relative error if measured."""
    return replace(
        figures,
        predicted_for=card.name,
        predicted_step_seconds={arm: step.total or None for arm, step in predicted.items()},
        prediction_error={
            arm: step.total / taken - 1.0 if (taken := measured.get(arm)) else None for arm, step in predicted.items()
        },
    )
