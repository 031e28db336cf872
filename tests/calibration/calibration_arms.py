"""What is judged: plans that are float32 by construction, formats, and rounding as a dial; and how they are run.

Every arm claims to be a plan in a real format. A runner trains what the arm is in truth, and precaudit's own
sequence of looks gives the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from calibration_models import LEARNING, TRAININGS, Lesson
from torch.overrides import TorchFunctionMode

from precaudit.execution.perturbation import Perturbation
from precaudit.execution.rounding import ROUNDINGS, in_words, round_mantissa
from precaudit.formats import get_format
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torch_function import map_tensors
from precaudit.model import LossScale, Plan
from precaudit.profiling.audit import Audit
from precaudit.profiling.settings import Settings
from precaudit.profiling.trials import Trials, trial_round
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.running.worker import run
from precaudit.tracing.records import Trace
from precaudit.verification import statistics
from precaudit.verification.equivalence import LOOKS
from precaudit.verification.verdict import Judgement

SEEDS = LOOKS[-1]
ELSEWHERE = 1_000_000
"""Seeds from here on are of runs that share nothing with those of a verdict."""


# ---------------------------------------------------------------- float32 under other names


class OneUlp(Perturbation):
    """Moves every initial weight by one unit in the last place, up or down by chance."""

    def __init__(self, *_: Any) -> None:
        generator = torch.Generator().manual_seed(1)

        def moved(weight: torch.Tensor) -> torch.Tensor:
            up = torch.rand(weight.shape, generator=generator) < 0.5
            return torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf))

        super().__init__(moved)

    def observe(self) -> None: ...


class _InFloat64(TorchFunctionMode):
    """Products and recurrent layers computed in float64: the same mathematics, other rounding errors."""

    _PRODUCTS = frozenset("linear conv2d scaled_dot_product_attention gru".split())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ not in self._PRODUCTS:
            return func(*args, **kwargs)
        wide = map_tensors(lambda t: t.double() if t.dtype == torch.float32 else t, (args, kwargs))
        return map_tensors(torch.Tensor.float, func(*wide[0], **wide[1]))


class OtherRounding:
    """A scope listener that puts `_InFloat64` around every model."""

    def __init__(self, *_: Any) -> None:
        self._mode = _InFloat64()

    def entered(self, frame: Frame) -> None:
        if frame.is_outermost:
            self._mode.__enter__()

    def left(self, frame: Frame, output: Any) -> Any:
        if frame.is_outermost:
            self._mode.__exit__(None, None, None)
        return output

    def observe(self) -> None: ...


# ---------------------------------------------------------------- arms


@dataclass(frozen=True)
class Arm:
    """A plan to judge. `kind` is `equal`, `format` or `dial`; `change` makes a candidate's spec what it is in truth."""

    name: str
    kind: str
    claims: Plan
    change: Callable[[RunSpec], RunSpec] = lambda spec: spec


BFLOAT16 = Plan(default="bfloat16")
FLOAT16 = Plan(default="float16", loss_scale=LossScale("dynamic", 2.0**10, 2000, (0, 12), 0.0))


def _float32(spec: RunSpec, **fields: Any) -> RunSpec:
    return replace(spec, precision="float32", plan=None, **fields)


EQUAL = (
    Arm("one ulp in the initial weights", "equal", BFLOAT16, partial(_float32, observer=OneUlp)),
    Arm("products in float64", "equal", BFLOAT16, partial(_float32, observer=OtherRounding)),
    Arm("initial weights 1% away", "equal", BFLOAT16, partial(_float32, jitter=True)),
    Arm("float32 of another seed", "equal", BFLOAT16, lambda spec: _float32(spec, seed=spec.seed + ELSEWHERE)),
)
FORMATS = (
    Arm("tf32", "format", Plan(default="tf32")),
    Arm("bfloat16", "format", BFLOAT16),
    Arm("float16", "format", FLOAT16),
    Arm("float8_e4m3", "format", Plan(default="float8_e4m3")),
)


class _Dialled(Plan):
    """A plan of a format that no machine has."""

    def __post_init__(self):
        pass


def round_to(values: torch.Tensor, bits: float) -> torch.Tensor:
    """A fractional number of bits has the rounding errors of the whole number below it, times two to minus the rest."""
    whole = max(0, math.floor(bits))
    rounded = round_mantissa(values, whole)
    return rounded if whole == bits else torch.lerp(values, rounded, 2.0 ** (whole - bits))


def dial(bits: float) -> Arm:
    """A plan that claims bfloat16, and rounds the factors of every product to `bits` fraction bits."""
    rounded = _Dialled(default=f"{bits:g} bits")
    ROUNDINGS[rounded.default] = in_words(partial(round_to, bits=bits))
    return Arm(f"{bits:g} bits", "dial", BFLOAT16, lambda spec: replace(spec, plan=rounded))


# ---------------------------------------------------------------- running them


@dataclass
class Trainer:
    """A runner over one training: seeds of group `group`, results of float32 kept for the next arm."""

    training: str
    group: int
    steps: int
    arm: Arm = EQUAL[0]
    lesson: Lesson = LEARNING
    runs: int = 0
    _kept: dict[tuple[int, int | None], RunResult] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job("script", self.training, (), ".", self.steps)

    def __call__(self, spec: RunSpec) -> RunResult:
        spec = replace(spec, seed=spec.seed + SEEDS * self.group)
        if spec.plan is not None:
            return self._train(self.arm.change(spec))
        key = spec.seed, spec.perturbed and get_format(spec.perturbed).mantissa
        if key not in self._kept:
            self._kept[key] = self._train(spec)
        return self._kept[key]

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        return [self(spec) for spec in specs]

    def _train(self, spec: RunSpec) -> RunResult:
        self.runs += 1
        return run(spec, lambda: TRAININGS[self.training](self.lesson))

    def verdict(self, arm: Arm) -> tuple[Judgement, dict[int, RunResult]]:
        """precaudit's verdict on an arm, and the candidate's runs that it took."""
        self.arm = arm
        return trial_round(self.trials(), arm.claims, "candidate-1", Settings(seeds=LOOKS[0]))

    def trials(self) -> Trials:
        reference = self(RunSpec(self.job, "reference"))
        audit = Audit(self.job, reference, Trace())
        return Trials(audit, self, {0: reference})


@dataclass(frozen=True)
class Row:
    """One verdict. `quarter` and `half` are relative differences of pairs over the last quarter and half of the run,
    of which the verdict used `window`; `parted` is the first step at which a pair is no longer together."""

    training: str
    arm: str
    kind: str
    group: int
    verdict: str
    reason: str
    pairs: int
    margin: float | None
    horizon: int | None
    learned: bool
    mean: float | None
    window: str
    quarter: tuple[float, ...]
    half: tuple[float, ...]
    parted: tuple[int, ...]


def judge_arm(trainer: Trainer, arm: Arm, every_seed: bool) -> Row:
    """A verdict, and what was measured beside it: with `every_seed` the pairs that the verdict did without, too."""
    judgement, candidates = trainer.verdict(arm)
    spent = len(candidates)
    wanted = range(SEEDS if every_seed else spent)
    trials = trainer.trials()
    candidates |= {seed: trainer(trials.spec("candidate-1", seed, arm.claims)) for seed in wanted[spent:]}
    references = [trainer(trials.spec("reference", seed)).losses for seed in wanted]
    losses = [candidates[seed].losses for seed in wanted]
    steps = trainer.steps

    def differences(share: int) -> tuple[float, ...]:
        return tuple(statistics.relative_differences(references, losses, slice(steps - steps // share, steps)).tolist())

    return Row(
        trainer.training,
        arm.name,
        arm.kind,
        trainer.group,
        judgement.verdict,
        judgement.reason,
        spent,
        judgement.margin,
        judgement.horizon,
        all(gate.passed for gate in judgement.gates if gate.name == "the reference learned"),
        judgement.difference.mean,
        "quarter" if judgement.horizon is None or judgement.horizon >= steps else "half",
        differences(4),
        differences(2),
        tuple(statistics.horizon(*pair) for pair in zip(references, losses, strict=True)),
    )
