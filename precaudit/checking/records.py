"""Settings, observations and answers of a check: frozen records without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from precaudit.model import Execution, ExecutionOption, Finding, Layer, Plan

SCHEMA_VERSION = 1
FORMATS = ("terminal", "markdown", "json", "github", "sarif", "gitlab", "junit")
"""What a check can be written as."""
LARGE_EXPONENT = 10
"""Hard inputs are the real ones times 2^10: a sensor without normalisation, raw pixels, another unit."""

HardKind = Literal["zeros", "large", "denormals", "batch of one", "longest"]
Status = Literal["passed", "warned", "failed", "not measured"]


@dataclass(frozen=True)
class CheckSettings:
    """The user's options; None and empty mean the plan's own."""

    steps: int = 8
    target: str | None = None
    formats: tuple[str, ...] = ()
    tolerance: float | None = None
    execution: ExecutionOption = "auto"


@dataclass(frozen=True)
class Deployment:
    """A plan to check, with the allowed relative rms error of outputs and its reason."""

    format: str
    plan: Plan
    tolerance: float
    why: str


@dataclass(frozen=True)
class ObserverSpec:
    """What to observe. Called in the script's process, it makes the scope listener that keeps the last `batches`."""

    deployments: tuple[Deployment, ...]
    execution: ExecutionOption = "auto"
    batches: int = 4

    def __call__(self, scopes: Any, in_disabled_region: Any) -> Any:
        from precaudit.checking.observer import Observer

        return Observer(self, scopes, in_disabled_region)


# ---------------------------------------------------------------- observations in the script's process


@dataclass(frozen=True)
class ModuleFacts:
    """A module of a model that was called, by its name in that model."""

    model: str
    fqn: str
    type: str
    leaf: bool
    has_parameters: bool


@dataclass(frozen=True)
class OutputMatch:
    """One output of a model under a deployment against float32, over all compared batches.

    `error` and `signal` are sums of squares over `values`; of `rows` class scores, `agreeing` have the same
    largest class and `near_ties` differ between classes that the tolerance doesn't tell apart. Of `entries` of lists
    that the model chose or sorted, `unpaired` have none like them on the other side. In `missing` further batches only
    float32 returned it.
    """

    format: str
    model: str
    output: str
    batches: int = 0
    values: int = 0
    signal: float = 0.0
    error: float = 0.0
    rows: int = 0
    agreeing: int = 0
    near_ties: int = 0
    nonfinite: int = 0
    reference_nonfinite: int = 0
    entries: int = 0
    unpaired: int = 0
    missing: int = 0

    @property
    def relative_error(self) -> float | None:
        """Root of error over signal; None where nothing could be compared."""
        if not self.values:
            return None
        if self.signal == 0:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.signal)

    @property
    def snr_db(self) -> float | None:
        error = self.relative_error
        if error is None:
            return None
        return math.inf if error == 0 else -20 * math.log10(error) if math.isfinite(error) else -math.inf

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same top-1; None where the output doesn't look like class scores."""
        return self.agreeing / self.rows if self.rows else None


@dataclass(frozen=True)
class HardInput:
    """A model's result for a hard input. `skipped`: why it was not tried; `raised`: the exception under the plan;
    `safe_exponent`: the largest power of two by which inputs may grow."""

    format: str
    model: str
    kind: HardKind
    nonfinite: int = 0
    reference_nonfinite: int = 0
    raised: str = ""
    skipped: str = ""
    safe_exponent: int | None = None


@dataclass(frozen=True)
class Observed:
    """All observations. `unanswered` says why a model could not be called again."""

    modules: tuple[ModuleFacts, ...] = ()
    outputs: tuple[OutputMatch, ...] = ()
    hard_inputs: tuple[HardInput, ...] = ()
    raised: tuple[tuple[str, str, str], ...] = ()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    execution: Execution = "emulated"
    calls: int = 0


# ---------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """One question of the gate: what was compared, and the findings."""

    question: str
    detail: str
    findings: tuple[Finding, ...] = ()
    measured: bool = True
    format: str = ""

    @property
    def status(self) -> Status:
        severities = {finding.severity for finding in self.findings}
        if "error" in severities:
            return "failed"
        if not self.measured:
            return "not measured"
        return "warned" if "warning" in severities else "passed"


@dataclass(frozen=True)
class CheckReport:
    """The result of a check; `passed` if no finding is an error."""

    answers: tuple[Answer, ...]
    deployments: tuple[Deployment, ...]
    target: str
    outputs: tuple[OutputMatch, ...] = ()
    hard_inputs: tuple[HardInput, ...] = ()
    layers: tuple[Layer, ...] = ()
    execution: Execution = "emulated"
    job: Mapping[str, Any] = field(default_factory=dict)
    precaudit_version: str = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for answer in self.answers for finding in answer.findings)

    @property
    def passed(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)
