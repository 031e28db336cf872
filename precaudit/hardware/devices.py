"""What this machine's accelerators can do, from NVML, torch and /proc/cpuinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from precaudit.hardware.generations import generation_of, has_tensor_cores
from precaudit.hardware.nvml import session, text
from precaudit.hardware.peaks import find_gpu
from precaudit.reporting.page import Page
from precaudit.words import NOT_MEASURED, capitalized, number, plural, visible

CPUINFO = Path("/proc/cpuinfo")
CPU_UNITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "amx_bf16": ("bfloat16",),
        "amx_fp16": ("float16",),
        "amx_int8": ("int8",),
        "avx512_bf16": ("bfloat16",),
        "avx512_fp16": ("float16",),
        "avx512_vnni": ("int8",),
        "avx_vnni": ("int8",),
        "bf16": ("bfloat16",),  # Arm's names from here on
        "asimdhp": ("float16",),
        "i8mm": ("int8",),
    }
)


@dataclass(frozen=True)
class Accelerator:
    """One GPU: `peaks` in dense TFLOP/s and `bandwidth` in GB/s are its data sheet's, null where not listed."""

    index: int
    name: str
    capability: str | None
    generation: str | None
    memory_bytes: int | None
    formats: tuple[str, ...] | None
    peaks: Mapping[str, float] | None
    bandwidth: float | None
    note: str | None = None


@dataclass(frozen=True)
class Cpu:
    """`units` maps the processor's matrix and low-precision instruction sets to the formats they take."""

    name: str | None
    cores: int | None
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Accelerator, ...]
    driver: str | None
    torch: str
    torch_cuda: str | None
    torch_sees_gpu: bool
    cpu: Cpu
    problem: str = ""


def inspect(nvml: Any, torch: Any, cpuinfo: str) -> Machine:
    """Facts about this machine; `problem` says why its GPUs can't be used or described."""
    gpus: tuple[Accelerator, ...] = ()
    driver = None
    with session(nvml) as missing:
        if not missing:
            version = _queried(nvml, nvml.nvmlSystemGetDriverVersion)
            driver = text(version) if version else None
            count = _queried(nvml, nvml.nvmlDeviceGetCount) or 0
            gpus = tuple(_gpu_or_why_not(nvml, index) for index in range(count))
    sees = bool(torch.cuda.is_available())
    problem = _problem(gpus, missing, torch, sees)
    return Machine(gpus, driver, str(torch.__version__), torch.version.cuda, sees, _cpu(cpuinfo), problem)


def read_cpuinfo() -> str:
    return CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""


def _problem(gpus: tuple[Accelerator, ...], missing: str, torch: Any, sees: bool) -> str:
    if sees:
        return "" if gpus else "PyTorch has a GPU that NVML doesn't list, as AMD's: no figures for it."
    if not gpus:
        return f"No NVIDIA GPU found (NVML: {missing})." if missing else "No NVIDIA GPU found."
    if torch.version.cuda is None:
        return "This PyTorch is built without CUDA: install a CUDA build to use the GPU."
    return "PyTorch can't use the GPU: the driver may be too old for its CUDA, or CUDA_VISIBLE_DEVICES hides it."


def _gpu_or_why_not(nvml: Any, index: int) -> Accelerator:
    """The GPU's facts; one that fell off the bus is listed without figures."""
    try:
        return _gpu(nvml, index)
    except nvml.NVMLError as error:
        why = f"NVML can't read it: {error}"
        return Accelerator(index, "name unknown", None, None, None, None, None, None, why)


def _gpu(nvml: Any, index: int) -> Accelerator:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = text(nvml.nvmlDeviceGetName(handle))
    capability = _queried(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = _queried(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)  # cards that share the host's memory don't say
    known = find_gpu(name)
    note = known.caveat() if known else "no peak figures known for this GPU"
    version = tuple(capability) if capability else None
    return Accelerator(
        index=index,
        name=name,
        capability=".".join(map(str, capability)) if capability else None,
        generation=generation_of(version) if has_tensor_cores(name, version) else None,
        memory_bytes=int(memory.total) if memory else None,
        formats=known.formats if known else None,
        peaks=dict(known.peaks) if known else None,
        bandwidth=known.bandwidth if known else None,
        note=note,
    )


def _queried(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of an NVML call; None where the driver doesn't support it."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def _cpu(cpuinfo: str) -> Cpu:
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    units = {unit: formats for unit, formats in CPU_UNITS.items() if unit in present}
    return Cpu(name[1].strip() if name else None, os.cpu_count(), units)


# ---------------------------------------------------------------- for people

WITHOUT_GPU = (
    "Everything but GPU timing works here: profile audits, plans and verifies on the CPU, emulating low "
    "precision; trace reads torch.profiler traces from any GPU; check, compare and report need none.",
    "Not measured without a GPU: Tensor Core time, speed, energy.",
)


def render(machine: Machine) -> str:
    page = Page()
    build = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "no CUDA"
    driver = f", driver {visible(machine.driver)}" if machine.driver else ""
    page.text(f"PyTorch {visible(machine.torch)} ({build}){driver}")
    for gpu in machine.gpus:
        page.section(f"GPU {gpu.index}: {visible(gpu.name)}", _gpu_lines(gpu))
    page.section(f"CPU: {visible(machine.cpu.name or 'name unknown')}", _cpu_lines(machine.cpu))
    if machine.problem and machine.torch_sees_gpu:
        page.section("GPU", [visible(machine.problem)])
    elif machine.problem:
        page.section("No GPU to use", [visible(machine.problem), *WITHOUT_GPU])
    return str(page)


def _gpu_lines(gpu: Accelerator) -> list[str]:
    size = f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else f"memory {NOT_MEASURED}"
    lines = [f"compute capability {gpu.capability or 'unknown'} ({gpu.generation or 'no Tensor Cores known'}), {size}"]
    if gpu.peaks is not None and gpu.formats is not None:
        lines.append(f"Tensor Core formats: {', '.join(gpu.formats)}")
        peaks = ", ".join(f"{name} {number(value)}" for name, value in gpu.peaks.items())
        lines.append(f"dense peaks by data sheet, TFLOP/s: {peaks}; {number(gpu.bandwidth, 'GB/s')}")
    return lines + ([f"{capitalized(gpu.note)}."] if gpu.note else [])


def _cpu_lines(cpu: Cpu) -> list[str]:
    units = ", ".join(f"{unit} ({', '.join(formats)})" for unit, formats in cpu.units.items())
    cores = plural(cpu.cores, "logical core") if cpu.cores else "unknown number of cores"
    return [cores, f"low-precision units: {units}" if units else "no low-precision units: low formats only cost here"]
