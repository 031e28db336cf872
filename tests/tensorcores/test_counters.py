"""Counters against an NVML that a test makes up."""

import pynvml
import pytest
from fake_nvml import FakeNvml, card

from precaudit.tensorcores.counters import METRICS, Pipes


def watched(nvml, gpu, work=lambda: None):
    pipes = Pipes(nvml, gpu)
    with pipes.watching() as shares:
        work()
    return pipes, shares


def test_shares_are_read_around_the_work():
    nvml = FakeNvml()
    pipes, shares = watched(nvml, card(gpm=1, counters={5: 62.5, 7: 60.0, 10: 20.0}))
    assert pipes.counts
    assert shares == pytest.approx({"tensor": 0.625, "hmma": 0.6, "dram": 0.2})
    assert nvml.samples == 0


@pytest.mark.parametrize(
    ("gpu", "why"),
    [(card(gpm=0), "no GPM counters"), (card(), "refused (Not Supported)"), (card(gpm=1), "refused")],
)
def test_says_why_nothing_was_measured(gpu, why):
    nvml = FakeNvml()
    pipes, shares = watched(nvml, gpu)
    assert not pipes.counts
    assert why in pipes.method
    assert shares == {}
    assert nvml.samples == 0


def test_counters_that_a_gpu_does_not_have_are_left_out():
    assert watched(FakeNvml(), card(gpm=1, counters={}))[1] == {}


def test_work_that_fails_frees_the_samples():
    nvml = FakeNvml()
    with pytest.raises(ZeroDivisionError):
        watched(nvml, card(gpm=1, counters={}), lambda: 1 / 0)
    assert nvml.samples == 0


def test_the_real_library_has_every_name_that_is_used():
    numbers = [getattr(pynvml, constant) for constant in METRICS.values()]
    assert numbers == [getattr(FakeNvml, constant) for constant in METRICS.values()]
    query = pynvml.c_nvmlGpmMetricsGet_t()
    query.metrics[0].metricId = numbers[0]
    assert len(query.metrics) >= len(METRICS)
    for name in dir(FakeNvml):
        assert name.startswith("_") or hasattr(pynvml, name), name
