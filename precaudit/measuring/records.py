"""The records of a timed run; without torch, so that any process can load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from precaudit.model import Finding, Plan, TensorCores
from precaudit.words import NOT_MEASURED

FLOAT32, TF32, AMP, PLAN = "float32", "tf32", "amp", "plan"
ARMS = (FLOAT32, TF32, AMP, PLAN)
ByArm = Mapping[str, float | None]
QuartilesByArm = Mapping[str, Sequence[float] | None]


@dataclass(frozen=True)
class Arm:
    """One way to run the same training: `half` is the format of an autocast region around whole models, `plan` a plan
    applied to them; without either the models run as they are. `scale` is the loss scale to start with, if any."""

    name: str
    tf32: bool = False
    half: str | None = None
    plan: Plan | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Block:
    """Some steps of one arm.

    - `seconds`: between synchronizations before and after; `peak_bytes`: peak allocated memory.
    - `joules`: the energy of the whole card; `tensor_share`: the share of time with busy Tensor Cores; None where
      unmeasured.
    - `skipped`: steps that a loss scale skipped.
    """

    arm: str
    round: int
    steps: int
    seconds: float
    peak_bytes: int | None = None
    joules: float | None = None
    tensor_share: float | None = None
    skipped: int = 0

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.steps


@dataclass(frozen=True)
class Profiled:
    """The kernels of a few steps of one arm; `seconds` is the GPU's time in all of them."""

    tensor_cores: TensorCores
    findings: tuple[Finding, ...]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Feed:
    """The script's data.

    - `waits`: seconds from the end of a step to the next forward.
    - `samples_per_step`: by the DataLoader's batch size, or the leading dimension of the first model's first input.
    - `steps_per_epoch`: where a DataLoader's length is known.
    """

    waits: tuple[float, ...] = ()
    samples_per_step: float | None = None
    steps_per_epoch: float | None = None


@dataclass(frozen=True)
class Observation:
    """All measurements of a timed run.

    - `running`: the arm at its end, to name the one that a script failed under.
    - `layers`: the share of time in which each layer, replayed alone under an arm, keeps Tensor Cores busy.
    - `captured`: the arms in which the script captured a CUDA graph.
    """

    device: str
    threads: int = 1
    blocks: tuple[Block, ...] = ()
    feed: Feed = field(default_factory=Feed)
    profiled: Mapping[str, Profiled] = field(default_factory=dict)
    running: str = FLOAT32
    energy: str = "not measured: no GPU"
    counters: str = "not measured: no GPU"
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    captured: frozenset[str] = frozenset()


def _of_none() -> Mapping[str, None]:
    return dict.fromkeys(ARMS)


def _of_none_beside_float32() -> Mapping[str, None]:
    return dict.fromkeys(ARMS[1:])


@dataclass(frozen=True)
class Performance:
    """What a report says of speed, by the names that it has there; None where unmeasured.

    - `gpu`: the card's name, if any; `speedup`: over float32; `gpu_busy_share`: the kernels' share of a step's time.
    - `tensor_pipe_share`: the share of time with busy Tensor Cores.
    - `prediction_error`: 0.5 where the predicted step is half as long again as the measured one.
    """

    gpu: str | None = None
    method: str = NOT_MEASURED
    step_seconds: ByArm = field(default_factory=_of_none)
    step_seconds_quartiles: QuartilesByArm = field(default_factory=_of_none)
    speedup: ByArm = field(default_factory=_of_none_beside_float32)
    speedup_quartiles: QuartilesByArm = field(default_factory=_of_none_beside_float32)
    timed_steps: ByArm = field(default_factory=_of_none)
    peak_memory_bytes: ByArm = field(default_factory=_of_none)
    energy_joules_per_step: ByArm = field(default_factory=_of_none)
    energy_method: str = NOT_MEASURED
    tensor_pipe_share: ByArm = field(default_factory=_of_none)
    tensor_pipe_share_by_layer: Mapping[str, Mapping[str, float]] | None = None
    counters_method: str = NOT_MEASURED
    data_wait_share: float | None = None
    gpu_busy_share: Mapping[str, float] | None = None
    predicted_for: str | None = None
    predicted_step_seconds: ByArm | None = None
    prediction_error: ByArm | None = None
    notes: tuple[str, ...] = ()
    seconds_measuring: float | None = None
