"""Counters against an NVML that a test makes up."""

import pynvml
import pytest
from fake_nvml import FakeNvml, card

from precaudit.hardware.counters import Pipes


def watched(nvml, gpu, work=lambda: None):
    pipes = Pipes(nvml, gpu)
    with pipes.watching() as busy:
        work()
    return pipes, busy.share


def test_the_share_is_read_around_the_work():
    nvml = FakeNvml()
    pipes, share = watched(nvml, card(gpm=1, counters={5: 62.5, 7: 60.0, 10: 20.0}))
    assert pipes.counts
    assert share == 0.625
    assert nvml.samples == 0


@pytest.mark.parametrize(
    ("gpu", "why"),
    [(card(gpm=0), "no GPM counters"), (card(), "refused (Not Supported)"), (card(gpm=1), "refused")],
)
def test_the_method_says_why_nothing_was_measured(gpu, why):
    nvml = FakeNvml()
    pipes, share = watched(nvml, gpu)
    assert not pipes.counts
    assert why in pipes.method
    assert share is None
    assert nvml.samples == 0


def test_a_missing_counter_is_left_out():
    assert watched(FakeNvml(), card(gpm=1, counters={}))[1] is None
    assert watched(FakeNvml(), card(gpm=1, counters={5: float("nan")}))[1] is None


def test_samples_are_freed_when_the_work_raises():
    nvml = FakeNvml()
    with pytest.raises(ZeroDivisionError):
        watched(nvml, card(gpm=1, counters={}), lambda: 1 / 0)
    assert nvml.samples == 0


def test_the_real_library_has_every_name_that_is_used():
    assert pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL == FakeNvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
    query = pynvml.c_nvmlGpmMetricsGet_t()
    query.metrics[0].metricId = pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
    for name in dir(FakeNvml):
        assert name.startswith("_") or hasattr(pynvml, name), name
