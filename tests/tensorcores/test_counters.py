"""Counters against an NVML that a test makes up."""

from itertools import count as counting

import pynvml
import pytest
from fake_nvml import FakeNvml, card

from precaudit.tensorcores.counters import METRICS, SHORTEST, count


def test_shares_are_read_over_half_a_second_of_work():
    nvml, done, ticks = FakeNvml(), [], counting()
    gpu = card(gpm=1, counters={5: 62.5, 7: 60.0, 10: 20.0})
    found = count(nvml, gpu, lambda: done.append(1), clock=lambda: next(ticks) * 0.1)
    assert found.measured
    assert found.shares == pytest.approx({"tensor": 0.625, "hmma": 0.6, "dram": 0.2})
    assert found.seconds >= SHORTEST
    assert len(done) == 5
    assert nvml.samples == 0


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (card(gpm=0), "no GPM counters"),
        (card(), "refused (Not Supported)"),
        (card(gpm=1), "refused"),
        (card(gpm=1, counters={}), "returned no counter"),
    ],
)
def test_says_why_nothing_was_measured(gpu, why):
    nvml = FakeNvml()
    found = count(nvml, gpu, lambda: None, clock=counting().__next__)
    assert not found.measured
    assert why in found.method
    assert found.shares == {}
    assert nvml.samples == 0


def test_work_that_fails_frees_the_samples():
    nvml = FakeNvml()
    with pytest.raises(ZeroDivisionError):
        count(nvml, card(gpm=1, counters={}), lambda: 1 / 0)
    assert nvml.samples == 0


def test_the_real_library_has_every_name_that_is_used():
    numbers = [getattr(pynvml, constant) for constant in METRICS.values()]
    assert numbers == [getattr(FakeNvml, constant) for constant in METRICS.values()]
    query = pynvml.c_nvmlGpmMetricsGet_t()
    query.metrics[0].metricId = numbers[0]
    assert len(query.metrics) >= len(METRICS)
    for name in dir(FakeNvml):
        assert name.startswith("_") or hasattr(pynvml, name), name
