"""Classes of kernels by name against the Tensor Core counters of Nsight Compute (`ncu`)."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import workload
from stage import Setting, Skipped, main

from precaudit.tensorcores.rules import classify, generation_of

INSTRUCTIONS = "sm__inst_executed_pipe_tensor_op_"
WARPGROUP, DOUBLE = f"{INSTRUCTIONS}gmma.sum", f"{INSTRUCTIONS}dmma.sum"
ENOUGH = 100


def measure(setting: Setting) -> dict[str, Any]:
    if setting.dry:
        return {"operations": workload.run("cpu", 32), "compared": 0}
    if shutil.which("ncu") is None:
        raise Skipped("ncu is not installed")
    command = [
        "ncu",
        "--csv",
        "--page",
        "raw",
        "--print-kernel-base",
        "demangled",
        "--metrics",
        ",".join(counters()),
    ]
    script = [sys.executable, str(Path(__file__).with_name("workload.py")), "--size", "512"]
    done = subprocess.run([*command, *script], capture_output=True, text=True)
    (setting.out / "ncu.csv").write_text(done.stdout)
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise Skipped("ncu may not read the counters here (ERR_NVGPUCTRPERM)")
    return compare(done.stdout.splitlines(), torch.cuda.get_device_capability())


def counters() -> list[str]:
    """Instructions executed on Tensor Cores, one metric a kind. `sm__pipe_tensor_cycles_active` will not do: on an
    H100 it is not zero for element-wise kernels either."""
    done = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True)
    names = (line.split()[0] for line in done.stdout.splitlines() if line.startswith(INSTRUCTIONS))
    found = sorted({f"{name}.sum" for name in names if "_" not in name.removeprefix(INSTRUCTIONS)})
    if WARPGROUP not in found:
        raise Skipped(f"ncu knows no {WARPGROUP} here")
    return found


def compare(lines: Iterable[str], capability: tuple[int, int]) -> dict[str, Any]:
    """Every launched kernel: what its name says against what the counters say; distinct disagreements in full."""
    table: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    unknown: dict[str, str] = {}
    rows = kernels(lines)
    for name, executed in rows:
        said, truth = classify(name, capability).tensor_core, _truth(executed, capability)
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
        "distinct": len({name for name, _ in rows}),
        "table": dict(table),
        "disagreements": wrong,
        "unknown": unknown,
    }


_MEANT = {"none": ("none",), "used": ("native", "legacy"), "native": ("native",), "legacy": ("legacy",)}


def _truth(executed: Mapping[str, float], capability: tuple[int, int]) -> str:
    """On Hopper warpgroup instructions tell the native path, which float64 doesn't have; elsewhere only use or not."""
    if not any(executed.values()):
        return "none"
    if generation_of(capability) != "hopper" or executed.get(DOUBLE):
        return "used"
    return "native" if executed.get(WARPGROUP) else "legacy"


def kernels(lines: Iterable[str]) -> list[tuple[str, dict[str, float]]]:
    """(name, Tensor Core instructions by metric) of every launch in ncu's CSV, its own messages left out."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    return [
        (row["Kernel Name"], {key: _number(value) for key, value in row.items() if key.startswith(INSTRUCTIONS)})
        for row in rows
        if row["ID"]
    ]


def _number(text: str | None) -> float:
    try:
        return float((text or "0").replace(",", ""))
    except ValueError:  # n/a
        return 0.0


if __name__ == "__main__":
    sys.exit(main("classes", measure))
