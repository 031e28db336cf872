"""Checks whether this data still fits the planned formats, with headroom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from precaudit.checking.models import ModelView, planned_formats
from precaudit.checking.records import Answer, Deployment
from precaudit.finding import finding
from precaudit.model import Finding, Plan, Severity
from precaudit.model.fitting import format_of
from precaudit.planning.rules import HEADROOM, Ban, bans
from precaudit.running.job import RunResult
from precaudit.tracing.records import Trace
from precaudit.words import listing, plural

SEVERITIES: Mapping[Severity, Severity] = {"error": "error", "warning": "warning", "note": "warning"}
"""The severity by that of the planner's rule. A note, by which the planner avoids a format, means that a plan with that
format has lost its headroom."""

RULES = {
    "PA101": "PA711",
    "PA102": "PA712",
    "PA103": "PA713",
    "PA104": "PA714",
    "PA105": "PA715",
    "PA106": "PA716",
    "PA107": "PA717",
}
"""The planner's rules, and the rules for a plan that violates them."""


def ranges(run: RunResult, views: Mapping[str, ModelView], deployment: Deployment, used: Iterable[str]) -> Answer:
    """`used` are the formats of the deployment; `views` have its plan."""
    trace = run.trace or Trace()
    if not trace.ops:
        return Answer("ranges", "no operation was traced", (_unseen(),), False, deployment.format)
    names = [name for name in used if name != "float32"]
    planned = planned_formats(views)
    broken = [ban for ban in bans(trace, names) if _applies(ban, planned)]
    detail = (
        f"{plural(len(trace.ops), 'operation')} held against {listing(names) or 'float32'}, "
        f"with a factor of {HEADROOM:g} to spare"
    )
    found = [*_of_bans(broken), *_of_losses(run)]
    return Answer("ranges", detail, tuple(found), format=deployment.format)


def _unseen() -> Finding:
    return finding(
        "PA719",
        "warning",
        "no forward pass ran with gradients enabled, so no range was measured",
        "check a script that trains, or a model file: build_model() and batches() suffice",
    )


def _applies(ban: Ban, planned: Mapping[str, tuple[Plan, str]]) -> bool:
    """Whether the plan has that operation in that format."""
    plan, fqn = planned.get(ban.fqn, (None, ""))
    return plan is not None and format_of(plan, fqn, ban.op) == ban.format


def _of_bans(broken: Iterable[Ban]) -> Iterable[Finding]:
    """Findings on violated rules, only the first for each operation."""
    together: dict[tuple[str, str], list[Ban]] = {}
    for ban in broken:
        together.setdefault((ban.fqn, ban.op), []).append(ban)
    for ban, *_ in together.values():
        yield finding(
            RULES[ban.rule],
            SEVERITIES[ban.severity],
            f"{ban.fqn or 'the model'}: {ban.why}; the plan has it in {ban.format}",
            f"{ban.fix}: profile with this data for a plan that does; if the data is wrong, fix what feeds it",
            fqn=ban.fqn,
            op=ban.op,
            location=ban.location,
            format=ban.format,
            value=ban.value,
            planner_rules=[each.rule for each in together[ban.fqn, ban.op]],
        )


def _of_losses(run: RunResult) -> Iterable[Finding]:
    step = next((i for i, loss in enumerate(run.losses) if not math.isfinite(loss)), None)
    if step is not None:
        yield finding(
            "PA718",
            "error",
            f"the loss is {run.losses[step]} at step {step} in float32 already: no plan can help",
            "look for nan, inf and extreme values in the data and at the learning rate first",
            step=step,
        )
