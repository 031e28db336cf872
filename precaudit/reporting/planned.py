"""A plan's exceptions, its loss scale and its repairs in sentences, for all renderers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from precaudit.model import LossScale, Plan, Repair, Report
from precaudit.reporting import unfinished
from precaudit.reporting.endings import last_tried
from precaudit.reporting.facts import scaled_by_hand
from precaudit.reporting.grouped import folded, without_figures
from precaudit.reporting.places import WHOLE
from precaudit.reporting.shown import is_withheld
from precaudit.words import NOT_MEASURED, listing, number, power, prose, visible

_FLOAT32_FIRST = "float32 itself must be repaired first"


@dataclass(frozen=True)
class Exceptions:
    """Modules and ops that leave the plan's default format for the same reason; `why` is the first one's where the
    reasons differ in figures."""

    format: str
    why: str
    names: tuple[str, ...]


def plan_default(report: Report) -> str:
    plan = report.plan
    if not plan.modules:
        return f"No plan is given: {_FLOAT32_FIRST}." if is_withheld(report) else unfinished.no_plan(report)
    if set(plan.modules.values()) == {plan.default} and not plan.ops:
        every = "The one module is" if len(plan.modules) == 1 else f"All {len(plan.modules):,} modules are"
        return f"{every} in {plan.default} on {prose(plan.target)}."
    return f"The plan's default on {prose(plan.target)} is {plan.default}. Exceptions:"


def no_gates(report: Report) -> str:
    """Why there are no gates, where there are none."""
    if is_withheld(report):
        return f"None was judged: {_FLOAT32_FIRST}."
    return f"{NOT_MEASURED.capitalize()}: no verification ran them."


def exceptions(plan: Plan) -> list[Exceptions]:
    """The exceptions from the plan's default by reason, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, place, why in _places(plan):
        groups.setdefault((name, without_figures(why)), []).append((place, why))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        Exceptions(name, _reason([why for _, why in members]), tuple(place for place, _ in members))
        for (name, _), members in ordered
    ]


def _places(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Format, name and reason of every module and op that leaves the plan's default."""
    for fqn, name in plan.modules.items():
        if name != plan.default:
            yield name, _place(fqn, None), plan.because.get(fqn, "")
    for op in plan.ops:
        yield op.format, _place(op.fqn, op.op), plan.because.get(f"{op.fqn}:{op.op}", "")


def _place(fqn: str, op: str | None) -> str:
    return f"{visible(fqn) or WHOLE}{f':{visible(op)}' if op else ''}"


def _reason(whys: Sequence[str]) -> str:
    first = prose(whys[0]) or "no reason recorded"
    return f"{first}; the others likewise" if len(set(whys)) > 1 else first


def loss_scale(report: Report) -> list[str]:
    """The window of loss scales, and the static and dynamic settings that fit it."""
    if not report.plan.modules:
        return ["None: there is no plan."]
    return [*_plans_loss_scale(report), *_by_hand(report)]


def _by_hand(report: Report) -> list[str]:
    if (own := scaled_by_hand(report)) is None:
        return []
    multiplied = "" if report.plan.loss_scale.mode == "none" else ", and the plan's multiplies it"
    return [f"The script's own, kept by hand, is {power(own)} at first and stays on in every run{multiplied}."]


def _plans_loss_scale(report: Report) -> list[str]:
    plan, scale = report.plan, report.plan.loss_scale
    if scale.mode == "none" and scale.window is None:
        narrow = "float16" in (plan.default, *plan.modules.values())
        why = "no scale was found to be of use" if narrow else "no gradient is stored in float16"
        return [f"Not needed: {why}. The plan trains without a loss scale."]
    whole = "Window: every scale from 2^{} to 2^{} keeps the gradients inside float16."
    lines = [whole.format(*scale.window) if scale.window else "Window: none, no single scale serves every module."]
    static = power(scale.init_scale if scale.mode == "static" else _start(scale))
    dynamic = power(scale.init_scale if scale.mode == "dynamic" else _start(scale))
    chosen = {mode: " (the plan's choice)" if mode == scale.mode else "" for mode in ("static", "dynamic")}
    lines.append(f"Static: a scale of {static}{chosen['static']}.")
    lines.append(f"Dynamic: start at {dynamic}, grow every {scale.interval:,} steps{chosen['dynamic']}.")
    lines.append(f"Skipped steps: predicted {number(scale.predicted_skips)}, seen {_observed_skips(report)}.")
    return lines


def _start(scale: LossScale) -> float | None:
    """The initial scale; None without a window, or where a double overflows."""
    if scale.window is None or scale.start is None or max(map(abs, scale.window)) > 1000:
        return None
    return 2.0**scale.start


def _observed_skips(report: Report) -> str:
    last = last_tried(report.verification)
    if last is None:
        return NOT_MEASURED
    skipped = [trial.skipped_steps for trial in report.verification.trials if trial.plan == last]
    return " to ".join(f"{count:,}" for count in dict.fromkeys((min(skipped), max(skipped))))


def repairs(report: Report) -> list[str]:
    """A line for the repairs of a round that have one reason."""
    none = "No repair was needed." if report.verification.verdict == "pass" else "No repair was made."
    groups: dict[tuple[object, ...], list[Repair]] = {}
    for repair in report.verification.repairs:
        alike = repair.round, repair.source, repair.target, without_figures(repair.why)
        groups.setdefault(alike, []).append(repair)
    return [_repaired(group) for group in groups.values()] or [none]


def _repaired(alike: Sequence[Repair]) -> str:
    first, names = alike[0], [_place(repair.fqn, repair.op) for repair in alike]
    formats = f"from {prose(first.source)} to {prose(first.target)}"
    return f"Round {first.round}: {listing(folded(names))} {formats}: {_reason([repair.why for repair in alike])}"
