"""The devices of a script's models: synchronization, peak memory, energy and counters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from precaudit.hardware.counters import Pipes
from precaudit.hardware.energy import Meter
from precaudit.hardware.nvml import handle_of, library, session

Devices = tuple[torch.device, ...]
CPU = torch.device("cpu")


def devices_of(models: Iterable[nn.Module]) -> Devices:
    """The devices of the models' parameters, the CPU last. A module on "meta" computes elsewhere, with the parameters
    that `torch.func.functional_call` gives it."""
    parameters = (p for model in models for p in model.parameters())
    found = dict.fromkeys(p.device for p in parameters if not p.is_meta)
    return tuple(sorted(found, key=lambda device: device.type == "cpu")) or (CPU,)


def wait_for(devices: Devices) -> None:
    """Wait for all work on these devices, of any GPU type."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif _is_accelerator(device):
            torch.accelerator.synchronize(device)


def is_recording() -> bool:
    """Whether a CUDA graph is being captured: launched work doesn't run then, and synchronization is an error."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _is_accelerator(device: torch.device) -> bool:
    """Whether the device is torch's accelerator on this machine, such as Apple's or Intel's GPU."""
    own = torch.accelerator.current_accelerator()
    return own is not None and own.type == device.type


def reset_peak(devices: Devices) -> None:
    for device in _gpus(devices):
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(devices: Devices) -> int | None:
    """Peak bytes allocated by CUDA on all GPUs since `reset_peak`; without a GPU the peak resident memory of the
    process since its start, which can't be reset."""
    if gpus := _gpus(devices):
        return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
    if devices[0].type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def own_counters(devices: Devices) -> Iterator[tuple[Meter, Pipes]]:
    """The energy meter of all GPUs and the counters of the first one; without GPUs, ones that count nothing."""
    gpus = _gpus(devices)
    if not gpus:
        yield Meter(), Pipes()
        return
    nvml = library()
    with session(nvml) as problem:
        if problem:
            yield Meter(problem=problem), Pipes(problem=problem)
            return
        try:
            handles = [handle_of(nvml, str(torch.cuda.get_device_properties(device).uuid)) for device in gpus]
        except nvml.NVMLError as error:
            yield Meter(problem=str(error)), Pipes(problem=str(error))
            return
        yield Meter(nvml, *handles), Pipes(nvml, handles[0])


def _gpus(devices: Devices) -> Devices:
    return tuple(device for device in devices if device.type == "cuda")
