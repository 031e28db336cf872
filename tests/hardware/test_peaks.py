from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precaudit.errors import PrecauditError
from precaudit.hardware.peaks import GPUS, find_gpu, get_gpu, gpu_for
from precaudit.model import Environment


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("h100", "h100"),
        ("H100", "h100"),
        ("h100-pcie", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA GB300", "gb300"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PG509-200", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A10", "a10"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-DGXS-32GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("RTX_5090", "rtx-5090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Instinct MI325X", "mi325x"),
        ("AMD Instinct MI250X", "mi250x"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA A30", "a30"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("a6000", "rtx-a6000"),
        ("NVIDIA A800-SXM4-80GB", "a800"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA H800", "h800"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx-2080-ti"),
        ("NVIDIA GeForce RTX 3080", "rtx-3080"),
        ("rtx4080", "rtx-4080"),
        ("NVIDIA GeForce RTX 5080", "rtx-5080"),
        ("jetson-agx-orin", "jetson-agx-orin"),
    ],
)
def test_names_people_and_drivers_use(name, key):
    assert get_gpu(name).key == key


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A16",
        "Tesla V100S-PCIE-32GB",
        "Orin",
        "Quadro RTX 6000",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA H800 PCIe",
        "NVIDIA A800-SXM4-40GB",
        "NVIDIA H200 MIG 1g.18gb",
        "Iluvatar BI-V100",
        "",
    ],
)
def test_variants_with_other_figures_are_not_matched(name):
    assert find_gpu(name) is None


@pytest.mark.parametrize(
    ("device", "capability", "key", "formats"),
    [
        ("Tesla V100-PCIE-32GB", "7.0", "v100-pcie", ("float16",)),
        ("NVIDIA GeForce RTX 2080 SUPER", "7.5", "t4", ("float16",)),
        ("Orin", "8.7", "jetson-agx-orin", ("bfloat16", "float16", "tf32")),
        ("NVIDIA GeForce GTX 1080", "6.1", "v100", ("float16",)),
        ("NVIDIA A16", "8.6", "a10", ("bfloat16", "float16", "tf32")),
        ("NVIDIA H100 NVL", "9.0", "h100-nvl", ("bfloat16", "float16", "tf32")),
        ("NVIDIA B300", "10.3", "b300", ("bfloat16", "float16", "tf32")),
        ("NVIDIA Thor", "11.0", "b300", ("bfloat16", "float16", "tf32")),
        ("NVIDIA H200", "9.0", "h200", ("bfloat16", "float16", "tf32")),
        ("AMD Instinct MI300A", "9.4", "mi300x", ("bfloat16", "float16", "tf32")),
        ("AMD Instinct MI250", "9.0", "mi210", ("bfloat16", "float16")),
        ("AMD Instinct MI355X", "9.5", "mi210", ("bfloat16", "float16")),
        ("AMD Radeon RX 7900 XTX", "11.0", "mi210", ("bfloat16", "float16")),
        ("cpu", None, "h100", ("bfloat16", "float16", "tf32")),
    ],
)
def test_plans_for_a_gpu_that_is_not_listed_have_the_formats_of_its_generation(device, capability, key, formats):
    cuda = None if "AMD" in device else "13.0"
    found = gpu_for(Environment(device=device, cuda=capability and cuda, capability=capability))
    assert (found.key, found.default_formats) == (key, formats)


def test_an_unknown_gpu_names_the_known_ones():
    with pytest.raises(PrecauditError, match=r"unknown GPU 'tpu'.*rtx-4090.*h100"):
        get_gpu("tpu")


@pytest.mark.parametrize(("name", "meant"), [("MI300", "mi300x"), ("jetson", "jetson-agx-orin"), ("h10", "h100")])
def test_an_unknown_gpu_names_the_closest_first(name, meant):
    with pytest.raises(PrecauditError, match=rf"unknown GPU '{name}' \(the closest by name: {meant}[,)]"):
        get_gpu(name)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_figures_are_dense_and_ordered(gpu):
    assert gpu.source
    assert find_gpu(gpu.key) is gpu
    ladder = [gpu.vector, *(gpu.peak(name) or gpu.vector for name in ("tf32", "float16", "float8_e4m3"))]
    assert ladder == sorted(ladder) or gpu.peak("float8_e4m3") is None
    if gpu.peak("tf32") and gpu.peak("bfloat16"):
        assert gpu.peak("bfloat16") / gpu.peak("tf32") == pytest.approx(2, rel=0.02)
    if gpu.peak("float8_e4m3"):
        assert gpu.peak("float8_e4m3") / gpu.peak("bfloat16") == pytest.approx(2, rel=0.03)
    for unchecked in gpu.from_memory:
        assert unchecked in {*gpu.peaks, "float32", "bandwidth"}


@pytest.mark.parametrize("name", ["b200", "b300"])
def test_a_superchips_gpu_has_more_power_and_a_ninth_more_throughput(name):
    alone, superchip = get_gpu(name), get_gpu(f"NVIDIA G{name.upper()}")
    for format_name in alone.formats:
        assert superchip.peak(format_name) / alone.peak(format_name) == pytest.approx(10 / 9)


def test_formats_of_the_matrix_units():
    assert get_gpu("v100").formats == ("float16",)
    assert get_gpu("a100").formats == ("tf32", "bfloat16", "float16")
    assert get_gpu("h100").formats == ("tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")
    assert get_gpu("v100").rate("bfloat16") == get_gpu("v100").vector


def test_figures_from_memory_are_marked():
    assert get_gpu("h100").caveat() is None
    assert "tf32" in (get_gpu("l4").caveat() or "")


@given(st.text())
def test_any_text_is_either_known_or_refused(name):
    gpu = find_gpu(name)
    assert gpu is None or gpu.key in GPUS
