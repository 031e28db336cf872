"""Time, memory and Tensor Cores, compared where they can be."""

from dataclasses import replace

import pytest
from synthetic_reports import timed

from precaudit.comparison.compare import compare
from precaudit.model import Report, TensorCores, TimeShare


def found(base, head):
    return {change.metric: change for change in compare(base, head).changes}


def test_time_and_memory_are_compared_on_one_device():
    changes = found(timed(0.1, memory=100), timed(0.15, memory=120))
    assert changes["time"].value == pytest.approx(50)
    assert changes["memory"].value == pytest.approx(20)
    assert changes["time"].message == "the time of a step (plan): 100 ms became 150 ms, 50% more"
    assert changes["memory"].message == "peak memory (plan): 100 B became 120 B, 20% more"
    assert changes["time"].regression
    assert changes["memory"].regression
    assert not found(timed(0.15), timed(0.1))


@pytest.mark.parametrize(
    "other", [{"device": "NVIDIA A100"}, {"capability": "8.0"}, {"device": None}, {"device": "cpu"}]
)
def test_time_is_not_compared_across_devices(other):
    comparison = compare(timed(0.1), timed(9.0, **other))
    assert comparison.clean
    assert any(reason.startswith("time") for reason in comparison.not_comparable)


def test_time_on_a_cpu_is_not_compared():
    comparison = compare(timed(0.1, device="cpu"), timed(9.0, device="cpu"))
    assert comparison.clean
    assert any(reason.startswith("time: measured on a CPU") for reason in comparison.not_comparable)


def test_memory_of_a_whole_process_is_not_compared_with_another_torch():
    old, new = (timed(0.1, memory, device="cpu", torch=f"2.{memory}") for memory in (100, 120))
    comparison = compare(old, new)
    assert comparison.clean
    assert any(reason.startswith("memory: on a CPU the whole process's") for reason in comparison.not_comparable)
    assert not compare(old, replace(new, environment=old.environment)).clean


def test_tensor_core_share_and_eligible_flops_lost():
    def cores(native, eligible):
        share = TimeShare(native, 0.0, 1 - native, 0.0)
        return Report(
            environment={"device": "cuda:0"},
            tensor_cores=TensorCores(True, "kineto", share, eligible_flops_share=eligible, device="H100"),
        )

    changes = found(cores(0.8, 0.99), cores(0.6, 0.9))
    assert changes["tensor_cores"].value == pytest.approx(20)
    assert changes["eligible_flops"].value == pytest.approx(9)
    elsewhere = cores(0.1, 0.99)
    elsewhere = replace(elsewhere, tensor_cores=replace(elsewhere.tensor_cores, device="A100"))
    assert not found(cores(0.8, 0.99), elsewhere)
