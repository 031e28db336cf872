"""Specification and result of one run: frozen, picklable, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal

from precaudit.errors import PrecauditError
from precaudit.formats import get_format
from precaudit.model import Execution, Location, Plan
from precaudit.ownprecision.records import OwnPrecision
from precaudit.tracing.records import AliasedValues, GradientDifference, HalfResult, Trace

JobKind = Literal["script", "module", "model_file", "inference"]
Precision = Literal["float32", "own-casts", "as-written", "plan"]
Status = Literal["stopped", "ended", "failed", "interrupted", "killed"]

REPLAY, SEARCH, WATCH, TIMING, ALONE = "replay", "bisect", "watch", "timing", "alone"
"""The labels of runs that serve another purpose than the training runs of a report."""

_OF_LAUNCHER = re.compile(r"\b(LOCAL_RANK|RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)\b")


@dataclass(frozen=True)
class Job:
    """A script, module or model file with its arguments and working directory.

    `inference` is a model file whose model is not trained: it runs `steps` batches in eval mode.
    `asserts` is off for scripts that assert the dtypes of their own autocast, which a float32 run cannot satisfy.
    """

    kind: JobKind
    target: str
    argv: tuple[str, ...]
    cwd: str
    steps: int
    device: str | None = None
    asserts: bool = True


@dataclass(frozen=True)
class RunSpec:
    """One run of a job.

    - `precision`: what is watched of the script's own precision is its casts by hand (`own-casts`), or all of it
      (`as-written`); in any other one it is off.
    - `audited`: steps that are traced; `shadowed`: those that measure each operation's own error too.
    - `probe_save`: steps whose gradients are saved in `probe_dir`; `probe_compare`: steps whose gradients under a plan
      are compared with the saved ones, each with a label for the comparison and the plan.
    - `watch_from`: the step from which the run looks for the first non-finite value.
    - `jitter` perturbs the initial weights by one percent, `perturbed` rounds them to this format.
    - `neutralize` turns the script's own casts to low precision into float32.
    - `patience`: how many model calls may pass without an optimizer step before the run is stopped.
    - `observer`: called with the module scopes and `Baseline.in_disabled_region`, it makes an additional scope
      listener, whose `observe()` after the run gives the result's `observed`.
    - `runs` replaces the instrumented run: called with the spec, the code and `leave`, it runs the code in its own way.
    - `since`: when the job's first run started, at the earliest (seconds since the epoch); `gpus`: the value of
      CUDA_VISIBLE_DEVICES, item by item.
    """

    job: Job
    label: str
    seed: int = 0
    precision: Precision = "float32"
    plan: Plan | None = None
    execution: Execution = "emulated"
    audited: frozenset[int] = frozenset()
    shadowed: frozenset[int] = frozenset()
    formats: tuple[str, ...] = ()
    probe_dir: str | None = None
    probe_save: frozenset[int] = frozenset()
    probe_compare: Mapping[int, tuple[str, Plan]] = field(default_factory=dict)
    watch_from: int | None = None
    perturbed: str | None = None
    jitter: bool = False
    neutralize: bool = False
    patience: float = math.inf
    log: str | None = None
    threads: int | None = None
    observer: Callable[..., Any] | None = None
    runs: Callable[..., RunResult] | None = None
    since: float = math.inf
    gpus: tuple[str, ...] = ()


_ROOM = 300
"""Characters of a message that a sentence has room for."""
_OF_WORKER, _RAISED = "Original Traceback", re.compile(r"^[\w.]+: .+$", re.MULTILINE)
_NO_GPU = ("Torch not compiled with CUDA", "Found no NVIDIA driver", "No CUDA GPUs are available")
_NO_MEMORY = ("out of memory", "defaultcpuallocator", "_alloc_failed")
OF_OPTIMIZER = ", optimizer "
"""In the name of a stream of losses, between its line and the optimizer's number."""
_ENDLESS, _TIMES = 1000, 50
"""A script waits for a usable batch for ever if so many model calls lead to no step: a number, and a multiple of the
most calls that a float32 step takes."""
_BY_CHANCE = 10.0
"""Correct plans were seen to have five times the error that rounding the weights causes."""
INTERNAL = "InternalError"
LACKS_ROOM = "LacksRoom"
OURS = frozenset((INTERNAL, LACKS_ROOM))
"""Types of errors that precaudit itself causes, not the script or the plan."""


@dataclass(frozen=True)
class ScriptError:
    """An exception that escaped from the script or from a model.

    - `location`: the last line of the script's own code in the traceback; `op`: the operation that raised it under a
      plan, if one did; `raised_by`: the name of the Python module whose code raised it.
    - `raised_in`: the innermost nn.Module whose forward it passed through or, where the backward pass of a custom
      autograd function raised it (`backward_of`), the one that applied this function.
    """

    type: str
    message: str
    traceback: str
    location: Location | None = None
    op: str | None = None
    raised_in: str | None = None
    backward_of: str | None = None
    raised_by: str = ""

    @property
    def short(self) -> str:
        """The message in one line. Its first one suffices unless it ends in a colon: torch's messages about a missing
        kernel fill a page. What a worker raised, torch quotes below."""
        first, _, rest = self.message.partition("\n")
        if rest.startswith(_OF_WORKER):
            first = " ".join([first, *_RAISED.findall(rest)[-1:]])
        return shorten(self.message if first.endswith(":") else first, _ROOM, placeholder=" ...")

    @property
    def is_scalers_refusal(self) -> bool:
        """Whether torch's GradScaler raised it, which refuses misuse on every machine."""
        return self.raised_by == "torch.amp.grad_scaler"

    @property
    def is_lack_of_memory(self) -> bool:
        text = self.message.lower()
        return self.type in ("OutOfMemoryError", "MemoryError") or any(word in text for word in _NO_MEMORY)

    @property
    def in_a_line(self) -> str:
        """The exception and its message; a script that exits raises none, to its author."""
        if self.type == "SystemExit":
            return f"it exited {'with code ' if self.message.isdigit() else 'with the words: '}{self.short}"
        return f"{self.type}: {self.short}"

    @property
    def is_lack_of_module(self) -> bool:
        """Whether a module is missing."""
        return self.type in ("ModuleNotFoundError", "ImportError") and self.message.startswith("No module named ")

    @property
    def is_lack_of_target(self) -> bool:
        """Whether `-m` names a module that doesn't exist, or can't be run."""
        return self.raised_by == "runpy" and self.type == "ImportError"

    @property
    def is_wrong_usage(self) -> bool:
        """Whether the script refused its arguments: argparse and most others exit with this code then."""
        return self.type == "SystemExit" and self.message == "2"

    @property
    def is_lack_of_input(self) -> bool:
        """Whether `input` was called, which has nothing to read in a run."""
        return self.type == "EOFError" and self.message == "EOF when reading a line"

    @property
    def is_lack_of_gpu(self) -> bool:
        """Whether torch's own code finds no GPU, or was built for none."""
        return self.type in ("AssertionError", "RuntimeError") and self.message.startswith(_NO_GPU)

    @property
    def is_lack_of_launcher(self) -> bool:
        """Whether a variable of the environment is missing that torchrun sets."""
        return self.type in ("KeyError", "ValueError") and _OF_LAUNCHER.search(self.message) is not None


@dataclass(frozen=True)
class OutputDeviation:
    """The difference of a model's output under a plan from float32's with the same weights.

    `error` is relative to the output's rms; `chance` is the relative change that rounding the weights once causes in
    float32; `causes` are modules that remove the difference when they run in float32.
    """

    error: float
    chance: float
    causes: tuple[str, ...] = ()

    def is_fault(self, plan: Plan) -> bool:
        return self.excess(plan) > 1

    def excess(self, plan: Plan) -> float:
        """The error relative to its limit: the tolerance of the plan's formats or, if larger, a multiple of `chance`,
        as some models are sensitive or make discrete choices."""
        return self.error / max(get_format(plan.narrowest).tolerance, _BY_CHANCE * self.chance)


@dataclass(frozen=True)
class EndState:
    """The state at the end of a run. `parameters`, `buffers` and `optimizer_state` name the non-finite ones.

    - `moved`, `learned`: for each buffer and each parameter, the rms of its change since the first forward pass; 0
      where the change is below float32's rounding.
    - `farthest`: the largest change of a trained parameter, relative to its rms.
    - `lost`: for each model, the first step whose output was nan or inf.
    - `evaluations`: for each model, its outputs for the last batch in eval mode: (finite, rms); `deviations`: their
      differences from float32's; `refused`: the errors of models that raised instead.
    """

    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    moved: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    farthest: float = math.inf
    lost: Mapping[str, int] = field(default_factory=dict)
    optimizer_state: tuple[str, ...] = ()
    evaluations: Mapping[str, tuple[bool, float]] = field(default_factory=dict)
    deviations: Mapping[str, OutputDeviation] = field(default_factory=dict)
    refused: Mapping[str, ScriptError] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The measurements of one run.

    - `losses`: one for each step; `streams`: the losses of each line that calls backward, by optimizer where one line
      serves several; `turns`: the optimizer, by number, of each loss where a few take turns.
    - `calls`: how many model calls with gradients preceded each step, and how many followed the last one.
    - `half_results`: the operations, by line, whose results were half in the probed steps.
    - `stale_files`: files that it read and that an earlier run of the job wrote; `crossed`: whether it read a file that
      a concurrent run wrote.
    - `on_cuda`: whether its models were on a CUDA device.
    """

    label: str
    seed: int
    status: Status
    steps: int = 0
    backward_calls: int = 0
    counted: str = "optimizer steps"
    losses: tuple[float, ...] = ()
    streams: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calls: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    error: ScriptError | None = None
    exit_code: int | None = None
    trace: Trace | None = None
    end_state: EndState = field(default_factory=EndState)
    differences: tuple[GradientDifference, ...] = ()
    aliased: tuple[AliasedValues, ...] = ()
    half_results: frozenset[HalfResult] = frozenset()
    step_seconds: tuple[float, ...] = ()
    seconds: float = 0.0
    own_precision: OwnPrecision = field(default_factory=OwnPrecision)
    observed: Any = None
    stale_files: tuple[str, ...] = ()
    crossed: bool = False
    on_cuda: bool = False
    turns: tuple[int, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether the run still goes on."""
        return self.status == "killed" and self.error is None

    @property
    def finished(self) -> bool:
        """Whether it took all steps, or the script ended normally before."""
        return self.status in ("stopped", "ended")

    @property
    def why(self) -> str:
        """Why it did not finish."""
        return self.error.message if self.error else self.status

    @property
    def patience(self) -> int:
        """The patience for another run of the script, from the model calls of this one."""
        return max(_ENDLESS, _TIMES * max(self.calls, default=1))

    @property
    def is_ours(self) -> bool:
        """Whether precaudit itself failed."""
        return self.error is not None and self.error.type in OURS

    @property
    def taken(self) -> str:
        """How many steps it took, in words."""
        return f"{self.steps} {self.counted.removesuffix('s') if self.steps == 1 else self.counted}"

    @property
    def failure(self) -> str:
        """Which of script and precaudit failed, and after how many steps."""
        return f"{'precaudit' if self.is_ours else 'the script'} failed after {self.taken}"


def require_target(run: RunResult) -> None:
    """Raise PrecauditError where `-m` names no module."""
    if run.error is not None and run.error.is_lack_of_target:
        where = "it is looked for in this folder, on PYTHONPATH and among what is installed beside precaudit"
        raise PrecauditError(f"{run.error.short} (-m takes a module's name as python -m does: {where})")
