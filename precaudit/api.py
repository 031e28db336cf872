"""The Python API: profile a model, audit an existing training loop, load reports and plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precaudit.errors import PrecauditError, require, require_count
from precaudit.formats import DEFAULT_FORMATS, get_format, parse_formats
from precaudit.model import Plan, Report

if TYPE_CHECKING:
    from precaudit.running.job import RunResult, RunSpec


def load_report(path: str | os.PathLike[str]) -> Report:
    """Read a report.

    `path` is a report.json or the output folder of `precaudit profile`. Raises PrecauditError where there is no valid
    report.
    """
    from precaudit.reporting.files import written_file
    from precaudit.reporting.serialize import load_report as load

    return load(written_file(Path(path)))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    `path` is a plan.json, a report.json, or the output folder of `precaudit profile`. Raises PrecauditError where there
    is no valid plan.
    """
    from precaudit.reporting.files import written_file
    from precaudit.reporting.serialize import load_plan as load

    return load(written_file(Path(path), "plan.json"))


def profile(
    build_model: Callable[[], Any],
    batches: Callable[[], Iterable[Any]],
    loss: Callable[[Any, Any], Any],
    *,
    build_optimizer: Callable[[Any], Any] | None = None,
    steps: int = 60,
    seeds: int = 3,
    formats: Iterable[str] = (),
    target: str | None = None,
    execution: Literal["auto", "native", "emulated"] = "auto",
    quick: bool = False,
    verify: bool = True,
    device: str | None = None,
    price: float | None = None,
) -> Report:
    """Audit, plan and verify a model in this process.

    - `build_model()` returns a new model, `batches()` an iterable of batches (`batches` may also be a re-iterable
      collection), `loss(model, batch)` a scalar tensor; `build_optimizer(model)` defaults to AdamW. Every run has its
      own seed, so create everything inside these functions.
    - `steps` are optimizer steps of each run, `seeds` the number of paired runs to begin with, `price` US dollars per
      hour on the device.
    - `formats` and `target` (a GPU) limit what the plan may use; `quick` trains a single pair, `verify=False` none.

    Raises PrecauditError for invalid arguments and where training fails; its cause is then the exception that the
    functions raised.
    """
    from precaudit.profiling.engine import profile_job
    from precaudit.profiling.settings import Settings
    from precaudit.running.job import Job
    from precaudit.running.model_file import checked_new

    repeatable = callable(batches) or not isinstance(batches, Iterator)
    require(repeatable, "batches is used up by the first run; pass a function that makes it, or a list")
    functions = {
        "build_model": checked_new(build_model),
        "batches": batches,
        "loss": loss,
        "build_optimizer": build_optimizer,
    }
    settings = Settings(steps, seeds, target, _formats(formats), execution, quick, verify, device, price)
    name = getattr(build_model, "__name__", type(build_model).__name__)
    runner = _InProcess(functions, device)
    outcome = profile_job(Job("model_file", name, (), os.getcwd(), steps, device), settings, runner)
    if outcome.error:
        raise PrecauditError(outcome.error, outcome.exit_code) from next(iter(runner.raised), None)
    return outcome.report


@dataclass(frozen=True)
class _InProcess:
    """Runs the functions of a model file in this process, one run at a time. `raised` is the last run's exception."""

    functions: dict[str, Any]
    device: str | None
    raised: list[Exception] = field(default_factory=list)

    def __call__(self, spec: RunSpec) -> RunResult:
        import torch

        from precaudit.running.model_file import train
        from precaudit.running.worker import run

        def code() -> None:
            self.raised.clear()
            try:
                train(self.functions, self.device)
            except Exception as error:
                self.raised.append(error)
                raise

        with _random_state_kept(), torch.inference_mode(False), torch.enable_grad():
            result = run(spec, code)
        if result.status == "interrupted":  # the caller pressed Ctrl-C: a test session or notebook must stop too
            raise KeyboardInterrupt
        return result

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        return [self(spec) for spec in specs]


def _formats(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical format names, from a list or from one comma-separated string as on the command line."""
    if isinstance(names, str):
        return parse_formats(names)
    wanted = tuple(names) if isinstance(names, Iterable) else (names,)
    require(all(isinstance(name, str) for name in wanted), f"formats must be names of number formats, not {names!r}")
    return tuple(dict.fromkeys(get_format(name).name for name in wanted))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the states of the global random generators afterwards."""
    import random

    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class audit:
    """Measure an existing training loop: `with precaudit.audit(model, optimizer=optimizer) as audit:`.

    Every `every`-th optimizer step is recorded in full (1: all of them). Steps are those of `optimizer` (one or a
    list) or, without it, of any optimizer of the model's parameters; where no optimizer steps, each backward pass
    counts as a step. Losses, gradients and weights stay bit-identical, and all hooks are removed on exit. Gradients are
    reported unscaled, also under a `torch.amp.GradScaler`. Raises PrecauditError for invalid arguments.
    """

    def __init__(self, model: Any, optimizer: Any = None, every: int = 16) -> None:
        from torch import nn

        from precaudit.tracing.auditing import Auditing

        optimizers = () if optimizer is None else optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
        stepping = all(hasattr(each, "param_groups") and hasattr(each, "step") for each in optimizers)
        require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {type(model).__name__}")
        require(stepping, f"optimizer must be a torch optimizer or a list of them, not {optimizer!r}")
        require_count("every", every)
        self._auditing = Auditing(model, optimizers, every, DEFAULT_FORMATS)

    def __enter__(self) -> audit:
        require(not self._auditing.running, "this audit is running already; make another one for another loop")
        self._auditing.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._auditing.stop()

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far, recorded or not."""
        return self._auditing.steps

    def report(self) -> Report:
        """The report so far: layers, operations, findings and a plan; its verdict is `not_run`.

        Under `torchrun` the records of all processes are merged, so every process must call this.
        """
        from precaudit.profiling.own_loop import report_of

        return report_of(self._auditing)

    def to_frame(self, table: Literal["layers", "ops", "findings"] = "layers") -> Any:
        """`report().to_frame(table)`."""
        return self.report().to_frame(table)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()
