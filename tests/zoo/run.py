"""Profile every script of the zoo and judge precaudit by the manifest, which precaudit itself never reads.

    python tests/zoo/run.py [--out reports/zoo] [--only NAME ...] [--kind fault|healthy] [--jobs 2] [--resume]

Writes results.json and README.md after every script, so a run that was cut off goes on with --resume. Each job has
one thread and its own runs one after another; all share one fork server, which pays for the imports once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from judging import judge, passed
from summary import summary
from zoo_files import ZOO, file_of

from precaudit.errors import PrecauditError
from precaudit.model import LossScale, Plan
from precaudit.model.ranges import residue_limit
from precaudit.planning.loss_scale import Gradients, half_gradients, lost_energy
from precaudit.profiling.engine import Outcome, profile_job
from precaudit.profiling.settings import Settings
from precaudit.reporting import write
from precaudit.running.children import ChildRunner
from precaudit.running.job import Job, RunResult, RunSpec

DEFAULT_SCALER = LossScale("dynamic", 2.0**16, 2000)


class Recorder:
    """A runner that keeps what each trial of a plan showed."""

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner
        self.trials: list[tuple[RunSpec, RunResult]] = []

    def __call__(self, spec: RunSpec) -> RunResult:
        return self.many([spec])[0]

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        results = self._runner.many(specs)
        self.trials += [pair for pair in zip(specs, results, strict=True) if pair[0].label.startswith("candidate")]
        return results

    def of(self, plan: Plan) -> list[tuple[RunSpec, RunResult]]:
        return [(spec, result) for spec, result in self.trials if spec.plan and spec.plan.digest == plan.digest]


def profile(entry: dict[str, Any], folder: Path, execution: str = "auto") -> dict[str, Any]:
    """One script from the audit to the judgement, as `precaudit profile` runs it."""
    start = time.perf_counter()
    recorder = Recorder(ChildRunner(folder / "script.log", parallel=1, threads=1))
    report, code, scale = None, 0, None
    try:
        job = Job("script", str(file_of(entry["script"])), (), os.getcwd(), entry["steps"])
        settings = Settings(steps=entry["steps"], formats=tuple(entry["formats"]), execution=execution)
        outcome = profile_job(job, settings, recorder)
        write(outcome.report, folder / "report.json")
        report, code = json.loads((folder / "report.json").read_text()), int(outcome.exit_code)
        seconds = time.perf_counter() - start
        scale = loss_scale_figures(outcome, recorder)
    except PrecauditError as error:
        code, seconds = int(error.exit_code), time.perf_counter() - start
    facts = {key: entry[key] for key in ("name", "kind", "formats", "steps")}
    result = facts | judge(entry, report, code) | {"exit_code": code, "seconds": seconds, "loss_scale": scale}
    return result | {"right": passed(entry, result), "execution": report["verification"]["execution"] if report else ""}


def loss_scale_figures(outcome: Outcome, recorder: Recorder) -> dict[str, Any] | None:
    """The recommended loss scale beside torch's default scaler, both in real runs of the same plan and seed."""
    plan = outcome.report.plan
    trials = recorder.of(plan)
    if plan.loss_scale.mode == "none" or not trials:
        return None
    spec, recommended = trials[0]
    default = recorder(replace(spec, label="default-scaler", plan=replace(plan, loss_scale=DEFAULT_SCALER)))
    gradients = half_gradients([layer for layer in outcome.report.layers if layer.trained], plan)

    def end(run: RunResult) -> dict[str, Any]:
        scale = run.scales[-1] if run.scales else None
        lost = worst_lost(gradients, round(math.log2(scale))) if scale else None
        return {"skipped": len(run.skipped), "final_scale": scale, "lost_energy": lost}

    return {
        "init_scale": plan.loss_scale.init_scale,
        "window": plan.loss_scale.window,
        "predicted_skips": plan.loss_scale.predicted_skips,
        "observed_skips": [len(run.skipped) for _, run in trials],
        "recommended": end(recommended),
        "default": end(default),
    }


def worst_lost(gradients: Gradients, k: int) -> float:
    """The largest share of its energy that a tensor loses at scale 2**k, rounding residues apart."""
    worst = 0.0
    for tensors in gradients.values():
        limit = residue_limit(tensors)
        worst = max([worst, *(lost_energy(t, k) for t in tensors if t.rms >= limit)])
    return worst


def selected(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    entries = json.loads((ZOO / "manifest.json").read_text())
    wanted = [e for e in entries if not arguments.only or e["name"] in arguments.only]
    return [e for e in wanted if arguments.kind in (None, e["kind"])]


def known(path: Path) -> dict[str, dict[str, Any]]:
    return {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}


def line(result: dict[str, Any], done: int, of: int) -> str:
    mark = "ok  " if result["right"] else "MISS"
    extra = f"needless {result['needless']} " if result["needless"] else ""
    return (
        f"[{done}/{of}] {mark} {result['kind']:8} {result['name']:28} {result['verdict']:12} "
        f"{result['seconds']:5.1f} s  {extra}{result.get('reason', '')[:90]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/zoo"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--kind", choices=("fault", "healthy"))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--resume", action="store_true", help="leave out what results.json has already")
    parser.add_argument("--execution", choices=("auto", "native", "emulated"), default="auto")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    results = known(path)
    entries = [e for e in selected(arguments) if not (arguments.resume and e["name"] in results)]
    order = [e["name"] for e in json.loads((ZOO / "manifest.json").read_text())]
    start = time.perf_counter()

    def one(entry: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            return profile(entry, Path(folder), arguments.execution)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done, future in enumerate(as_completed([pool.submit(one, entry) for entry in entries]), 1):
            result = future.result()
            results[result["name"]] = result
            print(line(result, done, len(entries)), flush=True)
            kept = [results[name] for name in order if name in results]
            path.write_text(json.dumps(kept, indent=1).replace(f"{ZOO.parents[1]}{os.sep}", ""))
            (arguments.out / "README.md").write_text(summary(kept, len(order)))
    print(f"{len(entries)} scripts in {(time.perf_counter() - start) / 60:.1f} minutes, {arguments.jobs} at a time")
    return int(not all(results[entry["name"]]["right"] for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
