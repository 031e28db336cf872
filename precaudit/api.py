"""The Python API: profile a model from Python, audit somebody's own loop, load what was written."""

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
    """The report in a report.json, or in a folder that a profile wrote; PrecauditError where there is none."""
    from precaudit.reporting.files import written_file
    from precaudit.reporting.serialize import load_report as load

    return load(written_file(Path(path)))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a plan.json, or in a folder that a profile wrote; PrecauditError where there is none."""
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
    """Audit, plan and verify a model from Python, in this process.

    `build_model()` returns a fresh model, `batches()` an iterable of batches (or `batches` is one that can be gone over
    in every run), `loss(model, batch)` a scalar; `build_optimizer(model)` defaults to AdamW. Every run starts from its
    own seed, so build everything inside.
    """
    from precaudit.profiling.engine import profile_job
    from precaudit.profiling.settings import Settings
    from precaudit.running.job import Job
    from precaudit.running.modelfile import anew

    anew_each_time = callable(batches) or not isinstance(batches, Iterator)
    require(anew_each_time, "batches is used up by the first run; pass a function that makes it, or a list")
    functions = {"build_model": anew(build_model), "batches": batches, "loss": loss, "build_optimizer": build_optimizer}
    settings = Settings(steps, seeds, target, _formats(formats), execution, quick, verify, device, price)
    name = getattr(build_model, "__name__", type(build_model).__name__)
    runner = _InProcess(functions, device)
    outcome = profile_job(Job("model_file", name, (), os.getcwd(), steps, device), settings, runner)
    if outcome.error:
        raise PrecauditError(outcome.error, outcome.exit_code) from next(iter(runner.raised), None)
    return outcome.report


@dataclass(frozen=True)
class _InProcess:
    """Runs a model file's functions here, one run after the other; `raised` is what the last one did."""

    functions: dict[str, Any]
    device: str | None
    raised: list[Exception] = field(default_factory=list)

    def __call__(self, spec: RunSpec) -> RunResult:
        import torch

        from precaudit.running.modelfile import train
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
        if result.status == "interrupted":  # the caller's own, who wants no next test or cell either
            raise KeyboardInterrupt
        return result

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        return [self(spec) for spec in specs]


def _formats(names: Iterable[str]) -> tuple[str, ...]:
    """Formats by name: a list, or one string as on the command line."""
    if isinstance(names, str):
        return parse_formats(names)
    wanted = tuple(names) if isinstance(names, Iterable) else (names,)
    require(all(isinstance(name, str) for name in wanted), f"formats must be names of number formats, not {names!r}")
    return tuple(dict.fromkeys(get_format(name).name for name in wanted))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The caller's random numbers go on where they were."""
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
    """Measure somebody's own training loop: `with precaudit.audit(model, optimizer=optimizer) as audit:`.

    Every `every`-th optimizer step is recorded in full (1: all of them). Steps are those of `optimizer` (one, or a
    list), or else of any optimizer of the model; where there is none a backward pass is a step. Losses, gradients and
    weights stay bit-identical; nothing is left on the model afterwards.
    Gradients are reported un-scaled under a `torch.amp.GradScaler` as well.
    """

    def __init__(self, model: Any, optimizer: Any = None, every: int = 16) -> None:
        from torch import nn

        from precaudit.tracing.auditing import Auditing

        optimizers = () if optimizer is None else optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
        stepping = all(hasattr(each, "param_groups") and hasattr(each, "step") for each in optimizers)
        require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {model!r}")
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
        """The report so far: layers, operations, findings and a plan; nothing is verified here.

        Under `torchrun` it speaks of all processes together, so all of them have to call it.
        """
        from precaudit.profiling.ownloop import report_of

        return report_of(self._auditing)

    def to_frame(self, table: Literal["layers", "ops", "findings"] = "layers") -> Any:
        """`report().to_frame(table)`."""
        return self.report().to_frame(table)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()
