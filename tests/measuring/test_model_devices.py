"""GPUs made up by a test: each of those that hold the models is waited for, and counted."""

from types import SimpleNamespace

import pytest
import torch
from fake_nvml import FakeNvml, card
from torch import nn

from precaudit.hardware.energy import Meter
from precaudit.measuring import devices
from precaudit.measuring.devices import devices_of, own_counters, peak_bytes, reset_peak, wait_for

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda:1"), torch.device("cuda:3")


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: made.append((name, device.index)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 * device.index)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"{device.index}"))
    return made


def test_devices_are_those_of_parameters_the_cpu_last():
    on_gpu = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=FIRST, is_meta=False)])
    assert devices_of([nn.Linear(2, 2), on_gpu, nn.ReLU(), nn.Linear(2, 2)]) == (FIRST, CPU)
    assert devices_of([]) == (CPU,)


def test_a_skeleton_of_an_ensemble_is_on_the_device_of_its_members():
    """The ensemble of torch.func's tutorial: the module that is called has its parameters on "meta"."""
    assert devices_of([nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)]) == (CPU,)
    assert devices_of([nn.Linear(2, 2, device="meta")]) == (CPU,)


def test_every_gpu_of_a_model_is_waited_for(calls):
    wait_for((FIRST, SECOND, CPU))
    reset_peak((FIRST, SECOND))
    assert calls == [("synchronize", 1), ("synchronize", 3)] + [("reset_peak_memory_stats", i) for i in (1, 3)]
    wait_for((CPU,))
    assert len(calls) == 4


def test_other_makers_gpus_are_waited_for_too(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    wait_for((torch.device("mps", 0), CPU, torch.device("meta")))
    assert waited == [torch.device("mps", 0)]


def test_peak_memory_is_that_of_all_gpus(calls):
    assert peak_bytes((FIRST, SECOND, CPU)) == 400


def test_counters_are_those_of_the_models_gpus(calls, monkeypatch):
    others = [card(uuid="GPU-0", energy=[9] * 9), card(uuid="GPU-2")]
    first, second = card(uuid="GPU-1", energy=[1000, 3000], gpm=1), card(uuid="GPU-3", energy=[2000, 2500])
    nvml = FakeNvml(*others, first, second)
    monkeypatch.setattr(devices, "library", lambda: nvml)
    with own_counters((FIRST, SECOND)) as (meter, pipes):
        assert nvml.open == 1
        assert meter.counts
        assert meter.read() == 5.5
        assert pipes.counts
    assert nvml.open == 0


def test_without_a_gpu_or_a_driver_nothing_is_counted(calls, monkeypatch):
    with own_counters((CPU,)) as (meter, pipes):
        assert (meter.counts, pipes.counts) == (False, False)
        assert meter.method == "not measured: no GPU"
    monkeypatch.setattr(devices, "library", lambda: FakeNvml(loads=False))
    with own_counters((FIRST,)) as (meter, pipes):
        assert meter.method == "not measured: NVML Shared Library Not Found" == pipes.method


def test_energy_of_two_gpus_needs_both():
    assert not Meter(FakeNvml(), card(energy=[1]), card()).counts
