"""How far from float32's the losses of single runs ended."""

from __future__ import annotations

from statistics import fmean

from precaudit.model import Verification

AS_WRITTEN = "as-written"


def last_tried(v: Verification) -> str | None:
    """The plan that was tried last."""
    return next((trial.plan for trial in reversed(v.trials) if trial.plan.startswith("candidate")), None)


def ended(v: Verification, plan: str, seed: int = 0) -> float:
    """The loss's mean over the compared steps against float32's of the same seed, relative; 0 where it wasn't seen."""
    runs = {trial.plan: trial for trial in v.trials if trial.seed == seed}
    reference, run = runs.get("reference"), runs.get(plan)
    if reference is None or run is None or not (reference.scale and v.compared):
        return 0.0
    part = slice(v.compared[0] - 1, v.compared[1])
    exact, own = reference.losses[part], run.losses[part]
    return (fmean(own) - fmean(exact)) / reference.scale if exact and own else 0.0


def ended_like_the_plan(v: Verification) -> bool:
    """Whether the script as written came as near as the margin, or as any single run under the plan. It may compute
    more in low precision than its modules, such as its loss."""
    last = last_tried(v)
    far = [abs(ended(v, trial.plan, trial.seed)) for trial in v.trials if trial.plan == last]
    return abs(ended(v, AS_WRITTEN)) <= max([v.margin or 0.0, *far])
