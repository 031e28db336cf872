"""The final losses of single runs relative to float32's."""

from __future__ import annotations

from statistics import fmean

from precaudit.model import AS_WRITTEN, REFERENCE, Verification


def last_tried(v: Verification) -> str | None:
    """The label of the last plan tried."""
    return next((trial.plan for trial in reversed(v.trials) if trial.is_candidate), None)


def ended(v: Verification, plan: str, seed: int = 0) -> float:
    """The relative difference of the mean loss over the compared steps from float32's with the same seed; 0 if
    unknown."""
    runs = {trial.plan: trial for trial in v.trials if trial.seed == seed}
    reference, run = runs.get(REFERENCE), runs.get(plan)
    if reference is None or run is None or not (reference.scale and v.compared):
        return 0.0
    part = slice(v.compared[0] - 1, v.compared[1])
    exact, own = reference.losses[part], run.losses[part]
    return (fmean(own) - fmean(exact)) / reference.scale if exact and own else 0.0


def ended_like_the_plan(v: Verification) -> bool:
    """Whether the script as written ended as close to float32 as the margin or any single run under the plan. Parts of
    it, such as its loss, may run in lower precision than under the plan."""
    last = last_tried(v)
    far = [abs(ended(v, trial.plan, trial.seed)) for trial in v.trials if trial.plan == last]
    return abs(ended(v, AS_WRITTEN)) <= max([v.margin or 0.0, *far])
