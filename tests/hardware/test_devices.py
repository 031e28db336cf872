"""`precaudit devices` on machines that are made up, and on this one."""

import json
from types import SimpleNamespace

import pytest
from fake_nvml import FakeNvml, card, fake_torch

from precaudit.__main__ import main
from precaudit.hardware.devices import inspect, render
from precaudit.hardware.nvml import equal_gpus, handle_of

XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu amx_bf16 amx_tile avx512_bf16 amx_int8\n"
GRACE = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16 i8mm\n"
H100 = card(capability=(9, 0), memory=80 * 2**30, uuid="GPU-1")


def flat(text):
    return " ".join(text.split())


def test_a_listed_gpu_has_its_formats_and_peaks():
    nvml = FakeNvml(H100)
    machine = inspect(nvml, fake_torch(), XEON)
    (gpu,) = machine.gpus
    assert (gpu.capability, gpu.generation) == ("9.0", "hopper")
    assert gpu.formats == ("tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")
    assert gpu.peaks["bfloat16"] == 989.5
    assert machine.driver == "580.65.06"
    assert machine.problem == ""
    assert nvml.open == 0
    text = render(machine)
    assert "80 GiB" in text
    assert "No GPU" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_unlisted_gpu_has_no_invented_figures():
    (gpu,) = inspect(FakeNvml(card(b"NVIDIA Future 9000")), fake_torch(), "").gpus
    assert gpu.peaks is gpu.formats is gpu.bandwidth is gpu.capability is gpu.memory_bytes is None
    assert "No peak figures known" in render(inspect(FakeNvml(card(b"NVIDIA Future 9000")), fake_torch(), ""))


def test_a_gpu_without_tensor_cores_has_no_generation():
    machine = inspect(FakeNvml(card("NVIDIA GeForce GTX 1660 Ti", capability=(7, 5))), fake_torch(), "")
    assert machine.gpus[0].generation is None
    assert "7.5 (no Tensor Cores known)" in flat(render(machine))


def test_a_driver_without_optional_queries_is_supported():
    class Silent(FakeNvml):
        def nvmlSystemGetDriverVersion(self):
            raise self.NVMLError("Not Supported")

    found = inspect(Silent(card("NVIDIA H200")), fake_torch(), "")
    (gpu,) = found.gpus
    assert (found.driver, gpu.capability, gpu.generation, gpu.memory_bytes) == (None, None, None, None)
    assert "memory not measured" in render(found)

    class Countless(FakeNvml):
        def nvmlDeviceGetCount(self):
            raise self.NVMLError("Unknown Error")

    assert inspect(Countless(card()), fake_torch(), "").gpus == ()


def test_a_lost_gpu_is_listed_beside_the_others():
    machine = inspect(FakeNvml(SimpleNamespace(), H100), fake_torch(), XEON)
    lost, other = machine.gpus
    assert (lost.index, lost.formats, lost.note) == (0, None, "NVML can't read it: Not Supported")
    assert other.peaks["bfloat16"] == 989.5
    assert "NVML can't read it" in render(machine)


@pytest.mark.parametrize(
    ("nvml", "torch", "words"),
    [
        (FakeNvml(loads=False), fake_torch(None, False), "NVML Shared Library Not Found"),
        (FakeNvml(), fake_torch("13.0", False), "No NVIDIA GPU found"),
        (FakeNvml(H100), fake_torch(None, False), "built without CUDA"),
        (FakeNvml(H100), fake_torch("13.0", False), "driver may be too old"),
    ],
)
def test_the_reason_why_no_gpu_can_be_used_is_printed(nvml, torch, words):
    text = flat(render(inspect(nvml, torch, XEON)))
    assert words in text
    assert "Everything but GPU timing works here" in text


def test_a_gpu_of_another_vendor_is_not_called_missing():
    text = flat(render(inspect(FakeNvml(loads=False), fake_torch(None, True), XEON)))
    assert "PyTorch has a GPU that NVML doesn't list" in text
    assert "No GPU to use" not in text


def test_matrix_units_of_processors():
    assert set(inspect(FakeNvml(), fake_torch(), XEON).cpu.units) == {"amx_bf16", "avx512_bf16", "amx_int8"}
    assert inspect(FakeNvml(), fake_torch(), GRACE).cpu.units["bf16"] == ("bfloat16",)
    assert "no low-precision units" in render(inspect(FakeNvml(), fake_torch(), ""))


def test_hostile_names_stay_text():
    text = render(inspect(FakeNvml(card("\x1b[31m::error::x\u202e")), fake_torch(), "model name : \x1b[0m"))
    assert text.replace("\n", "").isprintable()


def test_handles_are_found_by_uuid():
    other = card(uuid="GPU-2")
    assert handle_of(FakeNvml(H100, other), "2") is other
    assert handle_of(FakeNvml(H100, other), "GPU-1") is H100


@pytest.mark.parametrize("format_name", ["terminal", "json"])
def test_command_on_this_machine(format_name, capsys):
    assert main(["devices", "--format", format_name]) == 0
    out = capsys.readouterr().out
    assert "torch" in out.lower()
    if format_name == "json":
        assert set(json.loads(out)) >= {"gpus", "cpu", "driver", "problem"}


@pytest.mark.parametrize(
    ("cards", "environ", "gpus"),
    [
        (["H100", "H100"], {}, ("0", "1")),
        (["H100", "H100", "H100"], {"CUDA_VISIBLE_DEVICES": "2, 0"}, ("2", "0")),
        (["H100", "H100"], {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ("GPU-a", "GPU-b")),
        (["H100", "H100"], {"CUDA_VISIBLE_DEVICES": ""}, ()),
        (["H100", "H100"], {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, ()),
        (["H100", "A100"], {}, ()),
        ([], {}, ()),
    ],
)
def test_equal_gpus_are_those_that_cuda_may_use(cards, environ, gpus):
    nvml = FakeNvml(*(card(name=name) for name in cards))
    assert equal_gpus(nvml, environ) == gpus
    assert nvml.open == 0


@pytest.mark.parametrize("nvml", [FakeNvml(loads=False), FakeNvml(SimpleNamespace())])
def test_runs_are_not_spread_over_unknown_gpus(nvml):
    assert equal_gpus(nvml, {}) == ()
