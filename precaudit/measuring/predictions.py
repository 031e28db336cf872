"""The roofline's predictions, compared with measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precaudit.measuring.records import FLOAT32, PLAN
from precaudit.model import Layer, Op, Plan
from precaudit.tensorcores.peaks import Gpu
from precaudit.tensorcores.roofline import StepPrediction, predict_step

ALL_FLOAT32 = Plan()


def predictions(
    ops: Sequence[Op], layers: Sequence[Layer], plan: Plan, card: Gpu, steps: int
) -> dict[str, StepPrediction]:
    """Predicted times of a step in float32 and under the plan."""
    return {
        FLOAT32: predict_step(ops, layers, ALL_FLOAT32, card, steps),
        PLAN: predict_step(ops, layers, plan, card, steps),
    }


def compared(
    predicted: Mapping[str, StepPrediction], measured: Mapping[str, float | None], card: Gpu
) -> dict[str, Any]:
    """The keys of a report's `performance`: predicted seconds, and the relative error if measured (0.5: the prediction
    is half as long again)."""
    return {
        "predicted_for": card.name,
        "predicted_step_seconds": {arm: step.total or None for arm, step in predicted.items()},
        "prediction_error": {
            arm: step.total / taken - 1.0 if (taken := measured.get(arm)) else None for arm, step in predicted.items()
        },
    }
