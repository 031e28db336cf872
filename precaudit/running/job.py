"""What to run, how to run it, and what came of it: frozen, picklable, free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from precaudit.formats import get_format
from precaudit.model import Execution, Location, Plan
from precaudit.tracing.records import GradientDifference, Grid, Trace

JobKind = Literal["script", "module", "model_file", "inference"]
Precision = Literal["float32", "as-written", "plan"]
Status = Literal["stopped", "ended", "failed", "interrupted", "killed"]


@dataclass(frozen=True)
class Job:
    """A script, module or model file with its own arguments, and where it stands.

    `inference` is a model file whose model answers `steps` batches in eval mode and is not trained.
    `asserts` is off for scripts that assert the dtypes of their own autocast, which float32 cannot satisfy.
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

    - `audited`: steps that are traced; `shadowed`: those that measure each operation's own error too.
    - `probe_save`: steps whose gradients are kept in `probe_dir`; `probe_compare`: steps whose gradients under a plan
      are compared with the kept ones, with a label for the comparison and the plan.
    - `watch_from`: the step from which on the first non-finite value is looked for.
    - `jitter` moves the initial weights by one percent, `perturbed` rounds them to a format.
    - `neutralize` turns the script's own casts to low precision into float32.
    - `patience`: how many calls of models may lead to no step before the run is stopped.
    - `observer`: called with the module scopes and `Baseline.in_island`, it makes one more scope listener; what its
      `observe()` returns after the run is the result's `observed`.
    - `runs` takes the place of all this: called with the spec, the code and `leave`, it runs the code in its own way.
    - `since`: when the first run of the job may have begun; `gpus`: those that CUDA shows the run, in their order.
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


_NO_MEMORY = ("out of memory", "defaultcpuallocator", "_alloc_failed", "unable to find an engine to execute")
OF_OPTIMIZER = ", optimizer "
"""In the name of a stream of losses, between its line and the optimizer's number."""
_ENDLESS, _TIMES = 1000, 50
"""Calls of models, and times the most that led to a float32 step, with which a script waits for a better batch for
ever."""
_BY_CHANCE = 10.0
"""Plans that are right were seen to make five times the error that rounding the weights does."""
INTERNAL = "InternalError"
LACKS_ROOM = "LacksRoom"
OURS = frozenset((INTERNAL, LACKS_ROOM))
"""The types of errors that are precaudit's own, and no doing of the script's or a plan's."""


@dataclass(frozen=True)
class ScriptError:
    """An exception that left the script, or a model: its type, message, full traceback, the last line of the script's
    own code, and the operation that raised it under a plan, if one did. `raised_by` is the name of the Python module
    whose code raised it; `raised_in` the innermost module whose forward let it through, or that called the function
    `backward_of`, whose own backward pass did."""

    type: str
    message: str
    traceback: str
    location: Location | None = None
    op: str | None = None
    raised_in: str | None = None
    backward_of: str | None = None
    raised_by: str = ""

    @property
    def is_lack_of_memory(self) -> bool:
        text = self.message.lower()
        return self.type in ("OutOfMemoryError", "MemoryError") or any(word in text for word in _NO_MEMORY)


@dataclass(frozen=True)
class Astray:
    """How far a model's output is from float32's with the same weights, as a share of its rms; how far rounding the
    weights once moves float32's own (`chance`); and the modules that mend it when they run in float32 (`causes`)."""

    error: float
    chance: float
    causes: tuple[str, ...] = ()

    def is_fault(self, plan: Plan) -> bool:
        return self.excess(plan) > 1

    def excess(self, plan: Plan) -> float:
        """The error over what the plan's formats allow, or over many times what rounding the weights does where that is
        more: some models are sensitive, or choose by their values."""
        return self.error / max(get_format(plan.narrowest).tolerance, _BY_CHANCE * self.chance)


@dataclass(frozen=True)
class EndState:
    """The state that a run ended in. `parameters`, `buffers` and `optimizer_state` name what is not finite.

    - `moved`, `learned`: by buffer and by parameter, the rms of its change since the first forward; 0 where that is
      less than float32 rounds off.
    - `farthest`: the largest change of a trained parameter, as a share of its rms.
    - `lost`: by model, the step in which it first answered with nan or inf.
    - `evaluations`: by model, how it answered its last batch in eval mode: (finite, rms); `astray`: what of that is a
      plan's doing; `refused`: the error of a model that raised it instead.
    """

    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    moved: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    farthest: float = math.inf
    lost: Mapping[str, int] = field(default_factory=dict)
    optimizer_state: tuple[str, ...] = ()
    evaluations: Mapping[str, tuple[bool, float]] = field(default_factory=dict)
    astray: Mapping[str, Astray] = field(default_factory=dict)
    refused: Mapping[str, ScriptError] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """What one run showed.

    - `losses`: one a step; `streams`: the same by the line that called backward, and by the optimizer where that line
      does so for several.
    - `calls`: those of models, with gradients, by the step that they led to, and those after the last.
    - `halves`: the operations (model, module, name) whose results were half in the probed steps.
    - `leftovers`: files that it read and an earlier run of the job had written; `crossed`: whether a run beside it had.
    - `on_cuda`: whether its models were there.
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
    grids: tuple[Grid, ...] = ()
    halves: frozenset[tuple[str, str, str]] = frozenset()
    step_seconds: tuple[float, ...] = ()
    seconds: float = 0.0
    baseline: Mapping[str, object] = field(default_factory=dict)
    observed: Any = None
    leftovers: tuple[str, ...] = ()
    crossed: bool = False
    on_cuda: bool = False

    @property
    def finished(self) -> bool:
        """Whether it took its steps, or came to the script's own end before."""
        return self.status in ("stopped", "ended")

    @property
    def why(self) -> str:
        """What ended it otherwise."""
        return self.error.message if self.error else self.status

    @property
    def patience(self) -> int:
        """What another run of the script is given."""
        return max(_ENDLESS, _TIMES * max(self.calls, default=1))

    @property
    def is_ours(self) -> bool:
        """Whether precaudit itself failed."""
        return self.error is not None and self.error.type in OURS

    @property
    def failure(self) -> str:
        """Who failed, and when."""
        return f"{'precaudit' if self.is_ours else 'the script'} failed after {self.steps} {self.counted}"
