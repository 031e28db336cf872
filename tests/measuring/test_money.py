"""Money by arithmetic: USD for so many steps is their seconds times the price of a second."""

import pytest

from precaudit.measuring.money import cost, units
from precaudit.measuring.records import Feed, Performance

FEED = Feed(samples_per_step=64.0, steps_per_epoch=500.0)
TIMED = Performance(
    step_seconds={"float32": 0.036, "plan": 0.018}, energy_joules_per_step={"float32": 20.0, "plan": None}
)


def test_units_in_steps():
    assert units(FEED, 2000) == {"thousand_steps": 1000, "run": 2000, "epoch": 500, "thousand_samples": 1000 / 64}
    assert units(Feed(), None) == {"thousand_steps": 1000, "run": None, "epoch": None, "thousand_samples": None}


def test_closed_forms():
    found = cost(TIMED, 2.0, units(FEED, 2000), "H100")
    assert found["usd_per_thousand_steps_float32"] == pytest.approx(1000 * 0.036 / 3600 * 2)
    assert found["usd_per_thousand_steps_plan"] == pytest.approx(0.01)
    assert found["usd_per_run_float32"] == pytest.approx(0.04)
    assert found["usd_per_epoch_plan"] == pytest.approx(0.005)
    assert found["usd_per_thousand_samples_float32"] == pytest.approx(0.02 / 64)
    assert found["energy_joules_per_thousand_steps_float32"] == pytest.approx(20_000)
    assert found["energy_joules_per_thousand_steps_plan"] is None
    assert (found["price_per_hour"], found["device"]) == (2.0, "H100")


def test_unmeasured_stays_null():
    found = cost(Performance(), 2.0, units(FEED, 2000), None)
    assert {value for key, value in found.items() if key.startswith(("usd", "energy"))} == {None}
    free = cost(TIMED, None, units(FEED, 2000), "cpu")
    assert {value for key, value in free.items() if key.startswith("usd")} == {None}
