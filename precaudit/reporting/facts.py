"""Facts about a report that several sentences depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precaudit.formats import HALF_FORMATS
from precaudit.model import Finding, Plan, Report
from precaudit.reporting.endings import ended_like_the_plan
from precaudit.words import is_number, prose

OWN_PRECISION = ("PA3", "PA5")
"""Prefixes of the rules on a script's own low precision: its low-precision tensors, its autocast and its scaler."""


def own_format(report: Report) -> str:
    """The script's own format without mixed precision: float64 if all its weights are."""
    kinds = {tensor.dtype for layer in report.layers for tensor in layer.tensors if tensor.role == "weight"}
    return "float64" if kinds == {"float64"} else "float32"


def from_python(report: Report) -> bool:
    """Whether the job was run by `precaudit.profile` from Python: its name is a function's, which no shell can run."""
    return report.job.get("kind") == "model_file" and not str(report.job.get("script")).endswith(".py")


def unsound(report: Report) -> Finding | None:
    """The finding that float32 itself doesn't train; None where a plan passed nevertheless."""
    if report.verification.verdict in ("pass", "screened"):
        return None
    return next((finding for finding in report.findings if finding.rule == "PA603"), None)


def has_the_plan(report: Report) -> bool:
    """Whether the script's own autocast equals a verified plan, and ended as close to float32."""
    return asks_for_the_plan(report) and ended_like_the_plan(report.verification)


def asks_for_the_plan(report: Report) -> bool:
    sound = not any(f.rule.startswith(OWN_PRECISION) and f.severity != "note" for f in report.findings)
    return is_plain_autocast(report) and report.own_precision.get("autocast") == report.plan.default and sound


def scaled_by_hand(report: Report) -> float | None:
    """The first loss scale that the script keeps by hand, in every run; None without one."""
    own = report.own_precision.get("scaled_by_hand")
    return own if isinstance(own, int | float) else None


def is_plain_autocast(report: Report) -> bool:
    """Whether a verified plan needs nothing but torch.autocast around the whole model."""
    plan = report.plan
    half = plan.default in HALF_FORMATS and set(plan.modules.values()) == {plan.default}
    return half and not plan.ops and plan.loss_scale.mode == "none" and report.verification.verdict == "pass"


def settled(plan: Plan, finding: Finding) -> bool:
    """Whether the plan avoids the formats of the finding at its place, or in all of its modules: of the whole model, if
    it names none. What the script itself casts is rounded before any plan sees it."""
    named, modules = finding.evidence.get("formats"), finding.evidence.get("modules")
    if not isinstance(named, str) or "cast_by" in finding.evidence:
        return False
    ops = {(op.fqn, op.op): op.format for op in plan.ops}
    places = modules if isinstance(modules, list | tuple) else [] if finding.fqn is None else [finding.fqn]
    planned = [ops.get((fqn, finding.op or ""), plan.modules.get(fqn)) for fqn in places]
    planned = planned or [*plan.modules.values(), *ops.values()]
    return bool(planned) and all(each is not None and each not in named.split(", ") for each in planned)


def listed(report: Report, key: str) -> Sequence[Any]:
    """What the job lists under a key; nothing where it has no list there."""
    value = report.job.get(key)
    return value if isinstance(value, list | tuple) else ()


def figures(value: Any) -> dict[str, float]:
    """The finite numbers in a mapping, by arm; none in what is no mapping."""
    return {arm: figure for arm, figure in value.items() if is_number(figure)} if isinstance(value, Mapping) else {}


def notes(report: Report) -> list[str]:
    return [prose(note) for note in listed(report, "notes")]
