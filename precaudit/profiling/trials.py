"""Verification by training: paired runs, looks after three, five and eight seeds, and repair between rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from precaudit.model import CANDIDATE, REFERENCE, TWIN, Difference, Plan, Repair, Trial, Verification
from precaudit.profiling.audit import Audit, Runner, require_same_start
from precaudit.profiling.repairs import find_repair
from precaudit.profiling.settings import Settings
from precaudit.running.job import WATCH, RunResult, RunSpec
from precaudit.verification.equivalence import LOOKS, needs_more
from precaudit.verification.statistics import typical_loss
from precaudit.verification.verdict import Judgement, Runs, judge, screened

MAX_ROUNDS = 3
_ROUNDED = 0.5
"""A larger relative difference of the first losses means a different start rather than rounding."""
Replan = Callable[[Sequence[Repair]], Plan]


class Interrupted(Exception):
    """The user pressed Ctrl-C: the results so far are reported."""


@dataclass
class Trials:
    """All runs of one verification, in the order in which they ran."""

    audit: Audit
    runner: Runner
    references: dict[int, RunResult] = field(default_factory=dict)
    twins: dict[int, RunResult] = field(default_factory=dict)
    rounded_to: str = ""
    log: list[RunResult] = field(default_factory=list)
    jitter: bool = False

    def spec(self, label: str, seed: int, plan: Plan | None = None) -> RunSpec:
        return RunSpec(
            self.audit.job,
            label,
            seed,
            precision="plan" if plan else "float32",
            plan=plan,
            execution=self.audit.execution,
            neutralize=self.audit.neutralize,
            jitter=self.jitter and seed > 0,
            patience=self.audit.reference.patience if plan else math.inf,
        )

    def run(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        """Execute independent runs; the log has them in this order."""
        results = self.runner.many(specs)
        self.log += [result for result in results if result.label != WATCH]
        if any(result.status == "interrupted" for result in results):
            raise Interrupted
        return results

    def extend(self, label: str, plan: Plan, seeds: Sequence[int], candidates: dict[int, RunResult]) -> None:
        """Run pairs for more seeds, and float32 twins for those of the first look (eight at most), again for each new
        format."""
        if self.rounded_to != plan.narrowest:
            self.rounded_to = plan.narrowest
            self.twins.clear()
        missing = [seed for seed in seeds if seed not in self.references]
        specs = [self.spec(REFERENCE, seed) for seed in missing]
        specs += [self.spec(label, seed, plan) for seed in seeds]
        twinned = [] if self.twins else sorted({0, *seeds})[: LOOKS[-1]]
        twins = [replace(self.spec(TWIN, seed), perturbed=self.rounded_to) for seed in twinned]
        results = self.run([*twins, *specs])
        self.twins.update(zip(twinned, results, strict=False))
        results = results[len(twins) :]
        self.references.update(zip(missing, results, strict=False))
        candidates.update(zip(seeds, results[len(missing) :], strict=True))

    def judge(self, candidates: Mapping[int, RunResult], plan: Plan) -> Judgement:
        return judge(Runs(self.references, candidates, self.twins), plan)

    def seed_matters(self) -> bool:
        """Whether another seed changes anything: a script may fix all of its randomness."""
        others = [run for seed, run in self.references.items() if seed > 0]
        return self.jitter or not others or any(run.losses != self.references[0].losses for run in others)

    def jitter_seeds(self, candidates: dict[int, RunResult]) -> None:
        """From now on, replace seeds by jittered initial weights; earlier runs without differences are discarded."""
        self.jitter = True
        self.twins.clear()
        for seed in [seed for seed in candidates if seed > 0]:
            del candidates[seed], self.references[seed]
        self.log = [run for run in self.log if run.seed == 0 and run.label != TWIN]


def verify(audit: Audit, plan: Plan, replan: Replan, runner: Runner, settings: Settings) -> tuple[Verification, Plan]:
    """Train with the plan, judge, and repair at most three times. Returns the plan that the verdict is about."""
    trials = Trials(audit, runner, {0: audit.reference}, log=[audit.reference])
    if audit.as_written is not None:
        trials.log.append(audit.as_written)
    repairs: list[Repair] = []
    judgement = Judgement(
        "inconclusive", "interrupted before the first trial ended", None, Difference(), (), cause="interrupted"
    )
    try:
        for round_ in range(1, MAX_ROUNDS + 2):
            judgement, candidates = trial_round(trials, plan, f"{CANDIDATE}-{round_}", settings)
            if not _needs_repair(judgement, settings.quick) or round_ > MAX_ROUNDS:
                break
            found = find_repair(trials, plan, candidates)
            if not found:
                break
            repairs += [replace(repair, round=round_) for repair in found]
            plan = replan(repairs)
            if not plan.is_low_precision:
                break
    except Interrupted:
        reason = "interrupted before the verdict"
        judgement = replace(judgement, verdict="inconclusive", reason=reason, cause="interrupted")
    return _verification(trials, judgement, repairs), plan


def _needs_repair(judgement: Judgement, quick: bool) -> bool:
    """Whether to repair: after a failure, and after a doubt that eight pairs could not remove if the difference exceeds
    the margin and what float32 has from itself (in chaotic training modules would be blamed for noise)."""
    if judgement.verdict != "inconclusive" or judgement.settled or quick:
        return judgement.verdict == "fail"
    mean, margin = judgement.difference.mean, judgement.margin
    return mean is not None and margin is not None and abs(mean) > max(margin, judgement.chance)


def trial_round(trials: Trials, plan: Plan, label: str, settings: Settings) -> tuple[Judgement, dict[int, RunResult]]:
    """One round of trials, with the runs under the plan by seed: seed 0 alone reveals a plan that breaks or changes
    nothing; then float32 twins, and looks until the verdict is clear."""
    candidates = dict(zip([0], trials.run([trials.spec(label, 0, plan)]), strict=True))
    if trials.audit.replay is None:  # which began in float32, and was compared
        require_same_start(trials.audit.reference, candidates[0], tolerance=_ROUNDED)
    judgement = trials.judge(candidates, plan)
    if settings.quick:
        return screened(judgement), candidates
    finite = all(map(math.isfinite, trials.audit.reference.losses))  # else no number of seeds proves anything
    if judgement.verdict == "fail" or judgement.cause in ("interrupted", "unchanged") or not finite:
        return judgement, candidates
    wanted = settings.seeds
    while wanted > 1:
        trials.extend(label, plan, range(len(candidates), wanted), candidates)
        if not trials.seed_matters():
            trials.jitter_seeds(candidates)
            continue
        judgement = trials.judge(candidates, plan)
        more = needs_more(len(candidates))
        if judgement.verdict != "inconclusive" or judgement.settled or not more:
            break
        wanted = len(candidates) + more
    return judgement, candidates


def _verification(trials: Trials, judgement: Judgement, repairs: list[Repair]) -> Verification:
    audit, window = trials.audit, judgement.window
    return Verification(
        verdict=judgement.verdict,
        execution=trials.audit.execution,
        margin=judgement.margin,
        seeds=tuple(sorted({run.seed for run in trials.log})),
        steps=audit.reference.steps,
        trials=tuple(_trial(run, window) for run in trials.log),
        difference=judgement.difference,
        gates=judgement.gates,
        repairs=tuple(repairs),
        reason=judgement.reason,
        evaluations=sum(run.backward_calls for run in (*trials.log, *([audit.replay] if audit.replay else []))),
        horizon=judgement.horizon,
        cause=judgement.cause,
        compared=(window.start + 1, window.stop) if window else None,
    )


def _trial(run: RunResult, window: slice | None) -> Trial:
    scale = typical_loss(run.losses, window) if window and run.label == REFERENCE else None
    return Trial(run.seed, run.label, run.losses, len(run.skipped), run.steps, run.status, run.seconds, scale)
