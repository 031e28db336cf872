"""What a timed run showed; no torch, so that any process can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from precaudit.model import Finding, Plan, TensorCores

FLOAT32, TF32, AMP, PLAN = "float32", "tf32", "amp", "plan"
ARMS = (FLOAT32, TF32, AMP, PLAN)


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
    """Some steps of one arm: seconds from one synchronised moment to another. `peak_bytes` is the most memory that
    was allocated meanwhile, `joules` what the whole card used, and `tensor_share` the share of the time in which its
    Tensor Cores were busy, None where they were not measured; `skipped` counts the steps that a loss scale had
    skipped."""

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
    """What the script was fed with: `batch` samples (the leading dimension of the first model's first input, or the
    DataLoader's own batch size), `waits` seconds from a step's end to the next forward, `samples_per_step`, and the
    steps of an epoch where a DataLoader's length is known."""

    batch: int | None = None
    waits: tuple[float, ...] = ()
    samples_per_step: float | None = None
    steps_per_epoch: float | None = None


@dataclass(frozen=True)
class Observation:
    """All of one timed run. `running` is the arm in force when it ended, to name the one that a script failed under;
    `layers` has the share of the time in which each layer, alone under an arm, keeps Tensor Cores busy, and `captured`
    the arms in which the script recorded a CUDA graph."""

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
