"""Verification by training: paired runs, looks at three, five and eight seeds, and repair between rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from precaudit.model import Execution, Plan, Repair, Trial, Verification
from precaudit.profiling.audit import Audit, Runner
from precaudit.profiling.repairs import Promotion, find_repair
from precaudit.running.job import RunResult, RunSpec
from precaudit.verification.equivalence import needs_more
from precaudit.verification.verdict import Judgement, Runs, judge, screened

MAX_ROUNDS = 3
Replan = Callable[[dict[tuple[str, str], tuple[str, str]]], Plan]


class Interrupted(Exception):
    """The person pressed Ctrl-C: what is there is reported."""


@dataclass
class Trials:
    """All runs of one verification, in the order in which they ran."""

    audit: Audit
    execution: Execution
    runner: Runner
    references: dict[int, RunResult] = field(default_factory=dict)
    twin: RunResult | None = None
    log: list[RunResult] = field(default_factory=list)
    jitter: bool = False

    def run(
        self, label: str, seed: int, plan: Plan | None = None, watch_from: int | None = None, perturbed: bool = False
    ) -> RunResult:
        spec = RunSpec(
            self.audit.job,
            label,
            seed,
            precision="plan" if plan else "float32",
            plan=plan,
            execution=self.execution,
            neutralize=self.audit.neutralize,
            jitter=self.jitter and seed > 0,
            watch_from=watch_from,
            perturbed=perturbed,
        )
        result = self.runner(spec)
        if result.status == "interrupted":
            raise Interrupted
        self.log.append(result)
        return result

    def reference(self, seed: int) -> RunResult:
        """Seeds that change nothing (a script that fixes all its randomness) get jittered initial weights."""
        if seed not in self.references:
            result = self.run("reference", seed)
            if seed > 0 and not self.jitter and result.losses == self.references[0].losses:
                self.jitter = True
                self.log.pop()
                result = self.run("reference", seed)
            self.references[seed] = result
        return self.references[seed]


def verify(
    audit: Audit, plan: Plan, replan: Replan, execution: Execution, runner: Runner, seeds: int, quick: bool
) -> tuple[Verification, Plan]:
    """Train with the plan, judge, repair at most three times. Returns the plan that the verdict is about."""
    trials = Trials(audit, execution, runner, {0: audit.reference}, log=[audit.reference])
    if audit.as_written is not None:
        trials.log.append(audit.as_written)
    promoted: dict[tuple[str, str], tuple[str, str]] = {}
    repairs: list[Repair] = []
    judgement = Judgement(
        "inconclusive", "interrupted before the first trial ended", None, Verification().difference, ()
    )
    try:
        for round_ in range(1, MAX_ROUNDS + 2):
            candidates: dict[int, RunResult] = {}
            judgement = _trial_round(trials, plan, f"candidate-{round_}", seeds, quick, candidates)
            if not _needs_repair(judgement, quick) or round_ > MAX_ROUNDS:
                break
            promotions = find_repair(trials, plan, candidates, judgement)
            if not promotions:
                break
            plan, repairs = _repaired(plan, promotions, promoted, repairs, replan, round_)
            if not plan.is_low_precision:
                break
    except Interrupted:
        judgement = replace(judgement, verdict="inconclusive", reason="interrupted before the verdict")
    return _verification(trials, judgement, execution, repairs), plan


def _needs_repair(judgement: Judgement, quick: bool) -> bool:
    """Failures do; so does a doubt that eight pairs could not remove, where the difference is past the margin."""
    if judgement.verdict != "inconclusive" or quick:
        return judgement.verdict == "fail"
    mean, margin = judgement.difference.mean, judgement.margin
    return mean is not None and margin is not None and abs(mean) > margin


def _repaired(
    plan: Plan,
    promotions: list[Promotion],
    promoted: dict[tuple[str, str], tuple[str, str]],
    repairs: list[Repair],
    replan: Replan,
    round_: int,
) -> tuple[Plan, list[Repair]]:
    for item in promotions:
        promoted[item.fqn, item.op] = (item.target, item.why)
    fresh = [Repair(i.fqn, i.source, i.target, i.why, i.op or None, round_) for i in promotions]
    return replan(promoted), [*repairs, *fresh]


def _trial_round(
    trials: Trials, plan: Plan, label: str, seeds: int, quick: bool, candidates: dict[int, RunResult]
) -> Judgement:
    """Seed 0 alone shows a plan that breaks; then the float32 twin, and looks until the verdict is clear."""
    candidates[0] = trials.run(label, 0, plan)
    runs = Runs(trials.references, candidates)
    judgement = judge(runs, plan)
    if judgement.verdict == "fail" or quick or seeds == 1:
        return screened(judgement) if quick else judgement
    if trials.twin is None:
        trials.twin = trials.run("reference-perturbed", 0, perturbed=True)
    wanted = seeds
    while True:
        for seed in range(len(candidates), wanted):
            trials.reference(seed)
            candidates[seed] = trials.run(label, seed, plan)
            if candidates[seed].status not in ("stopped", "ended"):
                break
        judgement = judge(Runs(trials.references, candidates, trials.twin), plan)
        more = needs_more(len(candidates))
        if judgement.verdict != "inconclusive" or not more or len(candidates) < wanted:
            return judgement
        wanted = len(candidates) + more


def _verification(trials: Trials, judgement: Judgement, execution: Execution, repairs: list[Repair]) -> Verification:
    audit = trials.audit
    return Verification(
        verdict=judgement.verdict,
        execution=execution,
        margin=judgement.margin,
        seeds=tuple(sorted({run.seed for run in trials.log})),
        steps=audit.reference.steps,
        trials=tuple(
            Trial(run.seed, run.label, run.losses, len(run.skipped), run.steps, run.status, run.seconds)
            for run in trials.log
        ),
        difference=judgement.difference,
        gates=judgement.gates,
        repairs=tuple(repairs),
        reason=judgement.reason,
        evaluations=sum(run.backward_calls for run in (*trials.log, *([audit.replay] if audit.replay else []))),
        horizon=judgement.horizon,
    )
