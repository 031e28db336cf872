"""What the stages of `run.sh` share: one JSON file each, whatever happens."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CALLS = 10


class Skipped(Exception):
    """A stage that this machine can't run, and why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large: `dry` runs the same code in small on the CPU, so that its figures mean nothing."""

    device: str
    dry: bool
    out: Path

    def size(self, full: int, small: int) -> int:
        return small if self.dry else full


def main(name: str, measure: Callable[[Setting], dict[str, Any]]) -> int:
    """Run one stage; its exit code is 1 only when it failed, not when it was skipped.

    `failures` among what `measure` returns are sentences: the stage failed, its other results stand.
    """
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting("cpu" if arguments.dry_run else "cuda", arguments.dry_run, arguments.out)
    start = time.perf_counter()
    found = {"stage": name, "dry_run": setting.dry, **machine(setting), **_outcome(measure, setting)}
    found["seconds"] = round(time.perf_counter() - start, 2)
    (arguments.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {found['status']}{': ' + found['reason'] if found.get('reason') else ''} ({found['seconds']} s)")
    return int(found["status"] == "failed")


def machine(setting: Setting) -> dict[str, Any]:
    on_gpu = setting.device == "cuda" and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def _outcome(measure: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    if setting.device == "cuda" and not torch.cuda.is_available():
        return {"status": "skipped", "reason": "no CUDA device"}
    try:
        results = measure(setting)
    except Skipped as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    failures = results.pop("failures", [])
    status = {"status": "failed", "reason": "; ".join(failures)} if failures else {"status": "ok"}
    return {**status, "results": results}


def wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], Any], setting: Setting, repeats: int = 20) -> float:
    """Median of timings, the first three left out: on a GPU by its own clock over CALLS in a row, so that launching
    and waiting, which take as long as reading some tens of megabytes, count only where the GPU waits for them."""
    once = _gpu_seconds if setting.device == "cuda" else _seconds
    return statistics.median([once(work) for _ in range(3 + repeats)][3:])


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _gpu_seconds(work: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / CALLS
