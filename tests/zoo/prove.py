"""Show that each fault of the zoo is real and that each healthy workload is not one: plain torch, no precaudit.

    python tests/zoo/prove.py [NAME ...] [--seeds 2] [--jobs 2] [--table]

A script whose *model* breaks runs in float32 and again under `cuda_autocast.emulated`; a script that chooses low
precision itself runs as written, beside its repaired twin in float32. Every run is a process of its own. Losses are
reported without the factor of torch's scaler; a script that scales by hand shows by losses that are not finite.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import re
import runpy
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from cuda_autocast import emulated, in_float32
from tabulate import tabulate
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from zoo_files import ZOO, file_of


@dataclass
class Outcome:
    """What one run of a script did; `eval_loss` is the last figure that the script printed after `eval loss`."""

    losses: list[float] = field(default_factory=list)
    births: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    raised: str = ""
    eval_loss: float | None = None
    seconds: float = 0.0

    def final(self) -> float:
        finite = [x for x in self.losses if math.isfinite(x)]
        return fmean(finite[-max(len(finite) // 6, 1) :]) if finite else math.nan

    def nonfinite(self) -> int:
        return sum(not math.isfinite(x) for x in self.losses)


class _Enough(BaseException):
    """Stops the script after its steps."""


@contextlib.contextmanager
def _watched(outcome: Outcome, steps: int, loss_scale: float, skip: bool) -> Any:
    """Record losses, stop after `steps`, and scale the loss transparently: leaf gradients arrive un-scaled."""
    backward, done, scalers, make = Tensor.backward, {}, [], torch.amp.GradScaler.__init__

    def made(scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        make(scaler, *args, **kwargs)
        scalers.append(scaler)

    def scaled(loss: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
        outcome.losses.append(float(loss.detach().float().mean()) / max((s.get_scale() for s in scalers), default=1.0))
        hooks = (
            [leaf.register_hook(lambda grad: grad / loss_scale) for leaf in _leaves(loss)] if loss_scale != 1 else []
        )
        seed = torch.ones_like(loss) if gradient is None else gradient
        backward(loss, seed * loss_scale, *args, **kwargs)
        for hook in hooks:
            hook.remove()

    def before(optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if skip and not all(p.grad.isfinite().all() for p in parameters):
            outcome.skipped += 1
            for p in parameters:
                p.grad = None

    def after(optimizer: Optimizer, *_: Any) -> None:
        done[id(optimizer)] = done.get(id(optimizer), 0) + 1
        if done[id(optimizer)] >= steps:
            raise _Enough

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        with patch.object(Tensor, "backward", scaled), patch.object(torch.amp.GradScaler, "__init__", made):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _leaves(loss: Tensor) -> list[Tensor]:
    seen, found, todo = set(), [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found


def run(script: str, steps: int, execution: str, seed: int, settings: dict[str, Any]) -> Outcome:
    """`execution` is `float32`, `as-written` or the name of a format to emulate."""
    torch.set_num_threads(1)
    outcome, printed, start = Outcome(), io.StringIO(), time.perf_counter()
    manual_seed = torch.manual_seed
    low = execution not in ("float32", "as-written")
    scale, skip = (settings.get("loss_scale", 1), settings.get("skip", False)) if low else (1, False)
    context = contextlib.nullcontext() if execution == "as-written" else emulated(execution) if low else in_float32()
    try:
        with (
            context as mode,
            patch.object(sys, "argv", [script]),
            patch.object(torch, "manual_seed", lambda given: manual_seed(given + seed)),
            contextlib.redirect_stdout(printed),
            _watched(outcome, steps, scale, skip),
        ):
            runpy.run_path(str(file_of(script)), run_name="__main__")
    except _Enough:
        pass
    except Exception as error:
        outcome.raised = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    outcome.births = mode.births if low else []
    figures = re.findall(r"eval loss (\S+)", printed.getvalue())
    outcome.eval_loss = float(figures[-1]) if figures else None
    outcome.seconds = time.perf_counter() - start
    return outcome


@dataclass
class Row:
    """A script, seed and format: the float32 run beside the low-precision one."""

    entry: dict[str, Any]
    format: str
    seed: int
    reference: Outcome
    low: Outcome
    sound: bool

    def change(self) -> float:
        return self.low.final() / self.reference.final() - 1

    def eval_change(self) -> float:
        if self.reference.eval_loss is None or self.low.eval_loss is None:
            return 0.0
        return self.low.eval_loss / self.reference.eval_loss - 1

    def signs(self) -> list[str]:
        """What shows: every way in which the low-precision run is visibly worse."""
        signs = []
        if self.low.raised:
            signs.append("raises")
        if self.low.nonfinite():
            signs.append(f"{self.low.nonfinite()} of {len(self.low.losses)} losses not finite")
        elif math.isfinite(self.change()) and self.change() > 0.02:
            signs.append("loss worse")
        if not math.isfinite(self.eval_change()) or self.eval_change() > 0.05:
            signs.append("evaluation broken")
        return signs

    def right(self) -> bool:
        return self.sound == (not self.signs())

    def cells(self) -> list[str]:
        reference, low = self.reference, self.low
        comparable = low.nonfinite() == 0 and not low.raised
        return [
            self.entry["name"],
            self.format,
            str(self.seed),
            f"{reference.losses[0]:.4g}",
            f"{reference.final():.4g}",
            f"{low.final():.4g}" if comparable else "",
            f"{self.change():+.2%}" if comparable else "",
            "" if reference.eval_loss is None else f"{reference.eval_loss:.4g} / {low.eval_loss or math.nan:.4g}",
            ":".join(low.births[0]) if low.births else "",
            low.raised.split(":")[0] or "; ".join(self.signs()) or "same",
            f"{reference.seconds:.1f}",
        ]


HEADINGS = "script,format,seed,first loss,float32,low,change,eval float32 / low,first non-finite,shows,seconds".split(
    ","
)


def rows(entries: list[dict[str, Any]], seeds: int, jobs: int) -> list[Row]:
    """Every entry, format and seed, `jobs` runs at a time, each in a fresh process."""
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        pending = []
        for entry in entries:
            as_written = entry["cause"] == "script"
            twin = f"repaired/{entry['repaired']}.py" if as_written else entry["script"]
            settings = entry.get("prove", {})
            for seed in range(seeds):
                reference = pool.apply_async(run, (twin, entry["steps"], "float32", seed, settings))
                for execution in ["as-written"] if as_written else entry["formats"]:
                    low = pool.apply_async(run, (entry["script"], entry["steps"], execution, seed, settings))
                    pending.append((entry, execution, seed, reference, low, entry["kind"] == "healthy"))
                if rescue := settings.get("rescue_scale"):
                    task = (entry["script"], entry["steps"], "float16", seed, {"loss_scale": rescue})
                    name = f"float16, loss x 2^{math.log2(rescue):.0f}"
                    pending.append((entry, name, seed, reference, pool.apply_async(run, task), True))
        return [Row(entry, name, seed, ref.get(), low.get(), sound) for entry, name, seed, ref, low, sound in pending]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these (default: the whole manifest)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--manifest", type=Path, default=ZOO / "manifest.json")
    parser.add_argument("--table", default="simple", help="a format of tabulate's, such as github")
    arguments = parser.parse_args()
    manifest = json.loads(arguments.manifest.read_text())
    chosen = [entry for entry in manifest if not arguments.names or entry["name"] in arguments.names]
    found = rows(chosen, arguments.seeds, arguments.jobs)
    print(tabulate([row.cells() for row in found], HEADINGS, tablefmt=arguments.table, disable_numparse=True))
    wrong = [row for row in found if not row.right()]
    print(f"\n{len(found) - len(wrong)} of {len(found)} runs show what the manifest says.")
    for row in wrong:
        print(f"  not so: {row.entry['name']} ({row.entry['kind']}), {row.format}, seed {row.seed}: {row.low.raised}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
