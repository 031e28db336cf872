"""The verdict in sentences, for all renderers, which add markup and escape it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from precaudit.formats import FORMATS
from precaudit.model import Plan, Report
from precaudit.reporting import costs, unfinished
from precaudit.reporting.facts import OWN_PRECISION, own_format, unsound
from precaudit.reporting.undecided import undecided
from precaudit.words import plural, prose, share, signed

Tone = Literal["good", "bad", "open"]
BADGES = {
    "pass": "Verified",
    "fail": "Not verified",
    "inconclusive": "Not decided",
    "screened": "Screened",
    "not_run": "Not verified",
}
_UNSOUND = "In short: nothing is decided: float32 itself is not finite, so no other format can be compared with it."


@dataclass(frozen=True)
class Headline:
    tone: Tone
    title: str
    details: tuple[str, ...]


def plan_name(plan: Plan) -> str:
    """`bfloat16`, or `float32 with 3 of 20 modules in bfloat16`: modules kept higher are named elsewhere."""
    lower = Counter(f for f in plan.modules.values() if f != plan.default and _narrower(f, plan.default))
    if not lower:
        return plan.default
    parts = [f"{count:,} of {plural(len(plan.modules), 'module')} in {name}" for name, count in lower.most_common()]
    return f"{plan.default} with {' and '.join(parts)}"


def _narrower(name: str, than: str) -> bool:
    return (FORMATS[name].storage_bits, FORMATS[name].mantissa) < (FORMATS[than].storage_bits, FORMATS[than].mantissa)


def headline(report: Report) -> Headline:
    """The verdict for managers, with supporting details."""
    verdict, name = report.verification.verdict, plan_name(report.plan)
    undone = unfinished.title(report)
    if undone:
        return Headline("bad", undone, unfinished.details(report))
    broken = unsound(report)
    if broken:
        evidence = [_evidence(report)] if report.verification.trials else []
        return Headline("bad", f"REPAIR FLOAT32 FIRST: {prose(broken.message)}", (_UNSOUND, *evidence))
    repaired_away = report.verification.cause == "noise"  # what was in doubt is no longer in the plan
    if not report.plan.is_low_precision and (verdict != "inconclusive" or repaired_away):
        return Headline(
            "bad", f"STAY IN {own_format(report).upper()}: no low-precision plan is recommended", _details(report)
        )
    titles: dict[str, tuple[Tone, str]] = {
        "pass": ("good", f"VERIFIED: {name} trains the same as float32{_difference(report, 'within')}"),
        "fail": ("bad", f"NOT VERIFIED: {_failure(report)}"),
        "inconclusive": ("open", f"NOT DECIDED: whether {name} trains the same as float32{_between(report)}"),
        "screened": (
            "open",
            f"SCREENED, not verified: {name} looks the same as float32{_difference(report, 'within')}",
        ),
        "not_run": ("open", f"NOT VERIFIED: {name} is proposed, no training run has tried it"),
    }
    tone, title = titles[verdict]
    execution = report.verification.execution
    return Headline(tone, f"{title}, {execution}" if execution and verdict != "not_run" else title, _details(report))


def _failure(report: Report) -> str:
    if report.verification.cause == "raised":
        return f"the script fails under {plan_name(report.plan)}, not in float32"
    return f"{plan_name(report.plan)} does not train like float32{_difference(report, 'allowed')}"


def _difference(report: Report, relation: str) -> str:
    mean, margin = report.verification.difference.mean, report.verification.margin
    if mean is None:
        return ""
    allowed = "" if margin is None else f", {relation} ±{share(margin)}"
    return f" (difference {signed(mean)}{allowed})"


def _between(report: Report) -> str:
    difference, margin = report.verification.difference, report.verification.margin
    if difference.lower is None or difference.upper is None or margin is None:
        return _difference(report, "allowed")
    return f" (difference {signed(difference.lower)} to {signed(difference.upper)}, allowed ±{share(margin)})"


def _details(report: Report) -> tuple[str, ...]:
    v = report.verification
    lines = [_meaning(report)] if report.plan.is_low_precision else []
    lines += [_evidence(report)] if v.trials else []
    if v.execution == "emulated":
        device = prose(report.job.get("device") or report.environment.get("device") or "this machine")
        lines.append(
            f"Emulated: CUDA autocast's rounding was reproduced in software on {device}; "
            "what it says about learning carries over, its speed does not."
        )
    if v.execution == "native":
        lines.append("Native: the plan ran in the device's own low-precision arithmetic.")
    if v.reason and v.verdict != "pass":
        lines.append(f"Why: {prose(v.reason)}")
    return (*lines, *costs.gain(report))


def _meaning(report: Report) -> str:
    """The verdict in one sentence."""
    sentences = {
        "pass": f"you can train in {plan_name(report.plan)}: it learned what float32 learned. {_speed(report)}",
        "fail": f"stay in float32 for now: with this plan {_what_fails(report)}.",
        "screened": "it looked the same in one pair of runs: a first look, not a proof.",
        "not_run": "this plan follows from measured ranges; no training has shown that the model learns the same.",
    }
    verdict = report.verification.verdict
    meaning = sentences[verdict] if verdict in sentences else f"nothing is decided: {undecided(report).meaning}"
    return f"In short: {meaning}{_as_written(report)}"


def _what_fails(report: Report) -> str:
    if report.verification.cause == "raised":
        return "the script does not come to its end"
    return "the model does not learn what it learns in float32"


def _as_written(report: Report) -> str:
    """A sentence on errors of the script's own low precision, which the verdict on the plan does not cover."""
    errors = {f.rule for f in report.findings if f.rule.startswith(OWN_PRECISION) and f.severity == "error"}
    if "PA501" in errors:
        return " The script as it is written does not train like float32: see what to change."
    return " The script's own low precision has errors: see what to change." if errors else ""


def _speed(report: Report) -> str:
    faster, bounds = costs.speedup(report)
    if faster is None:
        return f"How much faster that is was not measured here{costs.expected(report)}."
    sure = "" if costs.gained(faster, bounds) else "not surely faster: "
    return f"It was {sure}{faster:.2f} times as fast."


def _evidence(report: Report) -> str:
    v = report.verification
    counted = prose(report.job.get("counted") or "optimizer steps")
    runs, seeds = plural(len(v.trials), "training run"), len(v.seeds)
    paired = f"paired by seed over {seeds:,} seeds" if seeds > 1 else "with the same seed"
    text = f"Evidence: {runs}, {paired}, {v.steps} {counted} each"
    if v.difference.lower is not None and v.difference.upper is not None:
        ends = dict.fromkeys((signed(v.difference.lower), signed(v.difference.upper)))
        text += f"; the loss differs by {' to '.join(ends)}"
    return f"{text}."
