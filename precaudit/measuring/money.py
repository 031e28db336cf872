"""What the steps of a run, an epoch or a thousand samples cost at a price per hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precaudit.measuring.records import FLOAT32, PLAN, Feed, Performance

HOUR = 3600.0
UNITS = ("thousand_steps", "run", "epoch", "thousand_samples")


def units(feed: Feed, run_steps: int | None) -> dict[str, float | None]:
    """How many steps each unit has; None where unknown."""
    samples = feed.samples_per_step
    return {
        "thousand_steps": 1000.0,
        "run": float(run_steps) if run_steps else None,
        "epoch": feed.steps_per_epoch,
        "thousand_samples": 1000.0 / samples if samples else None,
    }


def cost(
    performance: Performance, price: float | None, steps_in: Mapping[str, float | None], device: str | None
) -> dict[str, Any]:
    """The keys of a report's `cost`: US dollars and joules per unit, in float32 and under the plan; null where
    unmeasured. `device` is the one the price is for."""
    seconds, joules = performance.step_seconds, performance.energy_joules_per_step
    found: dict[str, Any] = {"price_per_hour": price, "device": device}
    for arm in (FLOAT32, PLAN):
        for unit in UNITS:
            found[f"usd_per_{unit}_{arm}"] = _times(
                steps_in[unit], seconds[arm], None if price is None else price / HOUR
            )
        found[f"energy_joules_per_thousand_steps_{arm}"] = _times(1000.0, joules[arm])
    return found


def _times(*factors: float | None) -> float | None:
    product = 1.0
    for factor in factors:
        if factor is None:
            return None
        product *= factor
    return product
