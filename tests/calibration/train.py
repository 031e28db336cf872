"""The verdict held against real trainings: `python tests/calibration/train.py [--quick] [--out reports/calibration]`.

Three stages of independent tasks: a pilot finds the bits at which each training is off by about the margin, then
plans of known truth are judged on groups of eight seeds, then trainings that learn nothing. Finished tasks are kept
in `partial.jsonl` until the results are written, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_arms import EQUAL, FORMATS, Arm, Trainer, dial, judge_arm
from calibration_models import LEARNING, TRAININGS, Lesson
from calibration_tables import readme, summary
from tqdm import tqdm

PILOT_BITS = (4, 3, 2, 1, 0, -1)
PILOT_GROUP = 10_000
NOTHING = {"standing still": Lesson(rate=0.0), "random targets": Lesson(random_targets=True)}


@dataclass(frozen=True)
class Settings:
    """Every plan is judged on `groups` groups of eight seeds, equal ones on `equal_groups`: they are mostly passed
    after three seeds, and want a rate below one in a hundred. `targets` are true differences to aim at, in margins."""

    trainings: tuple[str, ...] = tuple(TRAININGS)
    steps: int = 24
    groups: int = 20
    equal_groups: int = 40
    targets: tuple[float, ...] = (1.0, 1.1, 1.25, 1.5, 2.5)

    @property
    def guard_groups(self) -> int:
        return max(1, self.groups // 2)


QUICK = Settings(("regression",), 8, 2, 3, (2.0,))


@dataclass(frozen=True)
class Task:
    """Arms to judge on one group of seeds of one training."""

    stage: str
    training: str
    group: int
    steps: int
    bits: tuple[float, ...] = ()
    formats: bool = False
    equal: bool = False
    lesson: str = ""

    @property
    def arms(self) -> Iterator[tuple[Arm, bool]]:
        """With each arm, whether to train the seeds that its verdict can do without, too."""
        if self.lesson:
            yield FORMATS[1], False
        if self.equal:
            yield from ((arm, False) for arm in EQUAL[: len(EQUAL) if self.formats else -1])
        if self.formats:
            yield from ((arm, arm.name in ("bfloat16", "float8_e4m3")) for arm in FORMATS)
        yield from ((dial(bits), True) for bits in self.bits)


def perform(task: Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    trainer = Trainer(task.training, task.group, task.steps, lesson=NOTHING.get(task.lesson, LEARNING))
    rows = [asdict(judge_arm(trainer, arm, thorough)) for arm, thorough in task.arms]
    return {"rows": rows, "runs": trainer.runs}


# ---------------------------------------------------------------- stages


def pilot(settings: Settings) -> list[Task]:
    return [Task("pilot", name, PILOT_GROUP, settings.steps, PILOT_BITS) for name in settings.trainings]


def judged(settings: Settings, bits: dict[str, tuple[float, ...]]) -> list[Task]:
    return [
        Task("judged", name, group, settings.steps, bits[name], True, True)
        if group < settings.groups
        else Task("judged", name, group, settings.steps, equal=True)
        for group in range(settings.equal_groups)
        for name in settings.trainings
    ]


def guards(settings: Settings) -> list[Task]:
    return [
        Task("guard", name, group, settings.steps, lesson=lesson)
        for group in range(settings.guard_groups)
        for lesson in NOTHING
        for name in settings.trainings
    ]


def chosen_bits(rows: Sequence[dict[str, Any]], targets: Sequence[float]) -> tuple[float, ...]:
    """Where the pilot's differences, made monotone in the bits, would reach each target."""
    ratios = [abs(float(np.mean(row[row["window"]]))) / row["margin"] if row["margin"] else np.inf for row in rows]
    steady = np.log(np.maximum.accumulate(np.minimum(np.maximum(ratios, 1e-3), 1e3)))
    steady += 1e-6 * np.arange(len(steady))
    return tuple(round(float(np.interp(np.log(target), steady, PILOT_BITS)), 2) for target in targets)


# ---------------------------------------------------------------- running


class Journal:
    """Results of finished tasks, on disk as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                with suppress(json.JSONDecodeError):
                    self.done.update(json.loads(line))

    def run(self, tasks: Sequence[Task], pool: Executor, stage: str) -> list[dict[str, Any]]:
        keys = [json.dumps(asdict(task)) for task in tasks]
        missing = [(key, task) for key, task in zip(keys, tasks, strict=True) if key not in self.done]
        with self._path.open("a") as file:
            pending = {pool.submit(perform, task): key for key, task in missing}
            done, total = len(tasks) - len(missing), len(tasks)
            for future in tqdm(as_completed(pending), stage, initial=done, total=total, unit="group"):
                self.done[pending[future]] = future.result()
                file.write("\n" + json.dumps({pending[future]: future.result()}))
                file.flush()
        return [self.done[key] for key in keys]


def calibrate(settings: Settings, out: Path, workers: int) -> dict[str, Any]:
    start, load = time.perf_counter(), os.getloadavg()[0]
    journal = Journal(out / "partial.jsonl")
    resumed = len(journal.done)
    idle_tasks = guards(settings)
    with _pool(workers) as pool:
        pilots = journal.run(pilot(settings), pool, "pilot")
        bits = {
            name: chosen_bits(result["rows"], settings.targets)
            for name, result in zip(settings.trainings, pilots, strict=True)
        }
        main = journal.run(judged(settings, bits), pool, "verdicts")
        idle = journal.run(idle_tasks, pool, "nothing to learn")
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processes": workers,
        "seconds": round(time.perf_counter() - start),
        "load_before": round(load, 1),
        "resumed_tasks": resumed,
    }
    results: dict[str, Any] = {
        "settings": asdict(settings),
        "machine": machine,
        "trainings": sum(result["runs"] for result in (*pilots, *main, *idle)),
        "bits": bits,
        "rows": [row for result in main for row in result["rows"]],
        "nothing_to_learn": [
            row | {"arm": task.lesson} for task, result in zip(idle_tasks, idle, strict=True) for row in result["rows"]
        ],
    }
    return results | {"summary": summary(results)}


def _pool(workers: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/calibration"))
    parser.add_argument("--quick", action="store_true", help="seconds: shows that it runs, measures nothing")
    parser.add_argument("--groups", type=int, default=Settings.groups, help="groups of eight seeds for each plan")
    parser.add_argument("--equal-groups", type=int, default=Settings.equal_groups, help="the same for equal plans")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = QUICK if arguments.quick else Settings(groups=arguments.groups, equal_groups=arguments.equal_groups)
    results = calibrate(settings, arguments.out, 1 if arguments.quick else arguments.workers)
    page = readme(results)
    (arguments.out / "results.json").write_text(json.dumps(results) + "\n")
    (arguments.out / "README.md").write_text(page)
    (arguments.out / "partial.jsonl").unlink()
    print(page)


if __name__ == "__main__":
    main()
