"""Classes of kernels by name against the Tensor Core counters of Nsight Compute (`ncu`)."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import workload
from stage import Setting, Skipped, main

from precaudit.tensorcores.rules import classify, generation_of

ACTIVE, WARPGROUP = "sm__pipe_tensor_cycles_active.sum", "sm__inst_executed_pipe_tensor_op_gmma.sum"
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
        f"{ACTIVE},{WARPGROUP}",
    ]
    script = [sys.executable, str(Path(__file__).with_name("workload.py")), "--size", "512"]
    done = subprocess.run([*command, *script], capture_output=True, text=True)
    (setting.out / "ncu.csv").write_text(done.stdout)
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise Skipped("ncu may not read the counters here (ERR_NVGPUCTRPERM)")
    return compare(done.stdout.splitlines(), torch.cuda.get_device_capability())


def compare(lines: Iterable[str], capability: tuple[int, int]) -> dict[str, Any]:
    """Every launched kernel: what its name says against what the counters say; distinct disagreements in full."""
    table: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    rows = kernels(lines)
    for name, active, warpgroup in rows:
        said = classify(name, capability).tensor_core
        truth = _truth(active, warpgroup, capability)
        table[f"{said} by name, {truth} by counter"] += 1
        if said != "unknown" and (said == "none") != (truth == "none"):
            wrong[name] = f"{said}, not {truth}"
    if not rows:
        raise RuntimeError("ncu reported no kernel (see ncu.csv)")
    return {
        "compared": len(rows),
        "enough": len(rows) >= ENOUGH,
        "distinct": len({name for name, *_ in rows}),
        "table": dict(table),
        "disagreements": wrong,
    }


def _truth(active: float, warpgroup: float, capability: tuple[int, int]) -> str:
    """On Hopper the warpgroup counter tells the native path; elsewhere only use or not."""
    if not active:
        return "none"
    if generation_of(capability) != "hopper":
        return "used"
    return "native" if warpgroup else "legacy"


def kernels(lines: Iterable[str]) -> list[tuple[str, float, float]]:
    """(name, tensor cycles, warpgroup instructions) of every launch in ncu's CSV, its own messages left out."""
    table = [line for line in lines if line.startswith('"')]
    rows = csv.DictReader(table)
    return [(row["Kernel Name"], _number(row.get(ACTIVE)), _number(row.get(WARPGROUP))) for row in rows if row["ID"]]


def _number(text: str | None) -> float:
    try:
        return float((text or "0").replace(",", ""))
    except ValueError:  # n/a
        return 0.0


if __name__ == "__main__":
    sys.exit(main("classes", measure))
