"""Training runs, and the statistics and gates that verify a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from precaudit.model.traced import Location

Verdict = Literal["pass", "fail", "inconclusive", "screened", "not_run"]
Cause = Literal["noise", "float32", "unchanged", "interrupted", "early", "raised"]
Execution = Literal["native", "emulated"]
ExecutionOption = Literal["auto", "native", "emulated"]
EXECUTIONS: tuple[str, ...] = get_args(ExecutionOption)
LOOKS = (3, 5, 8)
"""Numbers of pairs after which the test of equivalence is made."""
ALPHA = 0.02
"""Level of each one-sided test at each look."""


REFERENCE, TWIN, AS_WRITTEN, CANDIDATE = "reference", "reference-perturbed", "as-written", "candidate"
"""The labels of training runs, with which reports tell them apart: in float32, again from weights that were rounded
once, in the script's own precision, and under a plan (`candidate-1`, ...)."""


@dataclass(frozen=True)
class Trial:
    """One training run; `plan` is its label.

    `scale` is the magnitude that differences from a reference's loss are relative to.
    """

    seed: int
    plan: str
    losses: tuple[float, ...]
    skipped_steps: int
    steps: int = 0
    status: str = "ok"
    seconds: float | None = None
    scale: float | None = None

    @property
    def is_reference(self) -> bool:
        return self.plan == REFERENCE

    @property
    def is_candidate(self) -> bool:
        return self.plan.startswith(CANDIDATE)


@dataclass(frozen=True)
class Difference:
    """Mean paired relative difference of the loss (candidate over reference, minus 1) with its bounds."""

    mean: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Gate:
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Repair:
    """A module or op moved from one format to another between two rounds of verification."""

    fqn: str
    source: str
    target: str
    why: str
    op: str | None = None
    round: int = 1
    location: Location | None = None


@dataclass(frozen=True)
class Verification:
    """The result of verification. `cause` says why nothing is decided; `compared` are the first and the last
    step (from 1) over which losses were averaged for the difference."""

    verdict: Verdict = "not_run"
    execution: Execution | None = None
    margin: float | None = None
    seeds: tuple[int, ...] = ()
    steps: int = 0
    trials: tuple[Trial, ...] = ()
    difference: Difference = field(default_factory=Difference)
    gates: tuple[Gate, ...] = ()
    repairs: tuple[Repair, ...] = ()
    reason: str = ""
    evaluations: int = 0
    horizon: int | None = None
    cause: Cause | None = None
    compared: tuple[int, int] | None = None
