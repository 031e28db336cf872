"""Classes of kernels by name against the Tensor Core counters of Nsight Compute (`ncu`)."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import workload
from stage import Setting, Skipped, main

from precaudit.hardware.generations import generation_of
from precaudit.tensorcores.traces.kernel_rules import classify

ACTIVE, WARPGROUP = "sm__pipe_tensor_cycles_active.sum", "sm__inst_executed_pipe_tensor_op_gmma.sum"
THREADS = "launch__thread_count"
BUSY = 64.0
"""Tensor-pipe cycles a warp above which a kernel computes on Tensor Cores. The pipe is not quite idle in other kernels:
on an H100 element-wise ones took up to 32 cycles a warp and those with mma.sync 96 and more (see h100_counters.tsv)."""
ENOUGH = 100
CUDA = "/usr/local/cuda/bin"
"""Where CUDA's installer puts `ncu`, often not on the path."""


def measure(setting: Setting) -> dict[str, Any]:
    if setting.dry:
        return {"operations": workload.run("cpu", 32), "compared": 0}
    ncu = shutil.which("ncu") or shutil.which("ncu", path=CUDA)
    if ncu is None:
        raise Skipped("ncu is not installed")
    command = [
        ncu,
        "--csv",
        "--page",
        "raw",
        "--print-kernel-base",
        "demangled",
        "--metrics",
        f"{ACTIVE},{WARPGROUP},{THREADS}",
        "--clock-control",  # the card may not be ours alone
        "none",
    ]
    script = [sys.executable, str(Path(__file__).with_name("workload.py")), "--size", "512"]
    done = subprocess.run([*command, *script], capture_output=True, text=True)
    (setting.out / "ncu.csv").write_text(done.stdout)
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise Skipped("ncu may not read the counters here (ERR_NVGPUCTRPERM)")
    if found := re.search(r"==ERROR== (.*(?:LibraryNotLoaded|driver).*)", done.stdout + done.stderr):
        raise Skipped(f"ncu doesn't work here: {found[1]}")
    found = compare(done.stdout.splitlines(), torch.cuda.get_device_capability())
    failures = [line for line in done.stdout.splitlines() if line.startswith(workload.REFUSED)]
    if workload.FINISHED not in done.stdout:
        failures.append(f"the workload ended early: {done.stderr.strip()[-300:]}")
    return {**found, "failures": failures}


def compare(lines: Iterable[str], capability: tuple[int, int]) -> dict[str, Any]:
    """Every launched kernel: what its name says against what the counters say; distinct disagreements in full."""
    table: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    unknown: dict[str, str] = {}
    rows = kernels(lines)
    for kernel in rows:
        name, said = kernel.name, classify(kernel.name, capability).tensor_core
        truth = _truth(kernel, capability)
        table[f"{said} by name, {truth} by counter"] += 1
        if said == "unknown":
            unknown[name] = truth
        elif said not in _MEANT[truth]:
            wrong[name] = f"{said}, not {truth}"
    if not rows:
        raise RuntimeError("ncu reported no kernel (see ncu.csv)")
    return {
        "compared": len(rows),
        "enough": len(rows) >= ENOUGH,
        "distinct": len({kernel.name for kernel in rows}),
        "table": dict(table),
        "disagreements": wrong,
        "unknown": unknown,
    }


_MEANT = {"none": ("none",), "used": ("native", "legacy"), "native": ("native",), "legacy": ("legacy",)}


def _truth(kernel: Launch, capability: tuple[int, int]) -> str:
    """On Hopper warpgroup instructions tell the native path, which float64 doesn't have; elsewhere only use or not."""
    if not kernel.warpgroup and kernel.cycles < BUSY:
        return "none"
    if generation_of(capability) != "hopper" or "f64" in kernel.name or "d884" in kernel.name:
        return "used"
    return "native" if kernel.warpgroup else "legacy"


@dataclass(frozen=True)
class Launch:
    """One launch: tensor-pipe cycles and warpgroup instructions a warp."""

    name: str
    cycles: float
    warpgroup: float


def kernels(lines: Iterable[str]) -> list[Launch]:
    """Every launch in ncu's CSV, its own messages left out."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    return [_launch(row) for row in rows if row["ID"]]


def _launch(row: Mapping[str, str]) -> Launch:
    warps = max(1.0, _number(row.get(THREADS)) / 32)
    return Launch(row["Kernel Name"], _number(row.get(ACTIVE)) / warps, _number(row.get(WARPGROUP)) / warps)


def _number(text: str | None) -> float:
    try:
        return float((text or "0").replace(",", ""))
    except ValueError:  # n/a
        return 0.0


if __name__ == "__main__":
    sys.exit(main("classes", measure))
