"""What a report says, in sentences: the one source of words for every renderer.

Each string is one line of visible text, ranked by what a reader needs first; renderers add markup and escape it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from precaudit.finding import USE_THE_PLAN, counted
from precaudit.formats import FORMATS
from precaudit.model import Cause, Finding, Plan, Report, Verification
from precaudit.reporting import costs, unfinished
from precaudit.reporting.endings import AS_WRITTEN, ended, ended_like_the_plan
from precaudit.reporting.grouped import Group, grouped
from precaudit.reporting.words import (
    listing,
    plural,
    prose,
    share,
    signed,
    visible,
)

Tone = Literal["good", "bad", "open"]
WHOLE = "(the model itself)"
_PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]")


@dataclass(frozen=True)
class Headline:
    tone: Tone
    title: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Undecided:
    """What it means that nothing was decided, and what would decide it: more of an `option`, where it is one."""

    meaning: str
    advice: str
    option: str | None = None


UNDECIDED: Mapping[Cause, Undecided] = {
    "noise": Undecided(
        "the difference may be one that is allowed or a larger one. More seeds can tell.",
        "Let more seeds decide: profile again with --seeds {seeds}.",
        "--seeds",
    ),
    "float32": Undecided(
        "float32 itself learned too little in these steps for a comparison.",
        "Profile again with more --steps, or a script whose loss falls: a plan is judged by what float32 learns.",
        "--steps",
    ),
    "unchanged": Undecided(
        "the plan's rounding changed no loss, so these runs say nothing about it.",
        "Check that the loss depends on the modules of the plan: their rounding did not change it.",
    ),
    "interrupted": Undecided(
        "the runs were interrupted before they could tell.",
        "Profile again and let the training runs finish.",
    ),
}

ENDED = Undecided(
    UNDECIDED["float32"].meaning,
    "Let the script train longer than it does by itself, or profile one whose loss falls: a plan is judged by what "
    "float32 learns.",
)
DOUBLE = Undecided(
    "the model computes in float64, which autocast leaves alone, so no value was rounded.",
    "Build the model and its data in float32 first, see that it still learns, and profile again.",
)

_TOO_MANY_SEEDS = 100


# ---------------------------------------------------------------- the verdict


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
    """The verdict in words a manager understands, and what stands behind it."""
    verdict, name = report.verification.verdict, plan_name(report.plan)
    undone = unfinished.title(report)
    if undone:
        return Headline("bad", undone, unfinished.details(report))
    broken = unsound(report)
    if broken:
        return Headline("bad", f"REPAIR FLOAT32 FIRST: {prose(broken.message)}", _details(report))
    repaired_away = report.verification.cause == "noise"  # what was in doubt is no longer in the plan
    if not report.plan.is_low_precision and (verdict != "inconclusive" or repaired_away):
        return Headline(
            "bad", f"STAY IN {_own(report).upper()}: no low-precision plan is recommended", _details(report)
        )
    titles: dict[str, tuple[Tone, str]] = {
        "pass": ("good", f"VERIFIED: {name} trains the same as float32{_difference(report, 'within')}"),
        "fail": ("bad", f"NOT VERIFIED: {name} does not train like float32{_difference(report, 'allowed')}"),
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


def _undecided(report: Report) -> Undecided:
    """Reports of older versions don't say for what; it was noise, mostly."""
    cause = report.verification.cause or "noise"
    if cause == "float32" and report.job.get("stopped") == "ended":
        return ENDED
    if cause == "noise" and (needed := _seeds_needed(report.verification)) > _TOO_MANY_SEEDS:
        return _chaotic(needed)
    return DOUBLE if cause == "unchanged" and _own(report) == "float64" else UNDECIDED[cause]


def _chaotic(seeds: float) -> Undecided:
    needed = f"some {float(f'{seeds:.1g}'):,.0f}" if seeds < 1e6 else "millions of"
    return Undecided(
        "these runs scatter so much more than the difference that is allowed that "
        f"{needed} seeds would be needed to tell.",
        "Judge by what you train for (a return, an accuracy) over several trainings of your own, with the plan and "
        "without it.",
    )


def _seeds_needed(verification: Verification) -> float:
    """How many it takes until the difference is known to within the margin; 0 where its bounds aren't known."""
    lower, upper, margin = verification.difference.lower, verification.difference.upper, verification.margin
    if lower is None or upper is None or not margin:
        return 0.0
    ratio = (upper - lower) / 2 / margin
    return len(verification.seeds) * ratio * ratio


def from_python(report: Report) -> bool:
    """Whether `precaudit.profile` was given functions: the job is called after one, and no shell can run it."""
    return report.job.get("kind") == "model_file" and not str(report.job.get("script")).endswith(".py")


def _own(report: Report) -> str:
    """What the script trains in when nothing is asked of it: float64 where all its weights are."""
    kinds = {tensor.dtype for layer in report.layers for tensor in layer.tensors if tensor.role == "weight"}
    return "float64" if kinds == {"float64"} else "float32"


def unsound(report: Report) -> Finding | None:
    """The finding that float32 itself doesn't train; of no account where a plan passed beside it."""
    if report.verification.verdict in ("pass", "screened"):
        return None
    return next((finding for finding in report.findings if finding.rule == "PA603"), None)


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
    """The verdict for somebody who will not read on."""
    sentences = {
        "pass": f"you can train in {plan_name(report.plan)}: it learned what float32 learned. {_speed(report)}",
        "fail": "stay in float32 for now: with this plan the model does not learn what it learns in float32.",
        "inconclusive": f"nothing is decided: {_undecided(report).meaning}",
        "screened": "it looked the same in one pair of runs: a first look, not a proof.",
        "not_run": "this plan follows from measured ranges; no training has shown that the model learns the same.",
    }
    if unsound(report):
        return "In short: nothing is decided: float32 itself is not finite, so no other format can be compared with it."
    return f"In short: {sentences[report.verification.verdict]}{_as_written(report)}"


def _as_written(report: Report) -> str:
    """What is said of the plan holds for the plan alone: who has errors of their own should not take it for theirs."""
    errors = {f.rule for f in report.findings if f.rule.startswith(_OWN_PRECISION) and f.severity == "error"}
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
    runs, seeds = plural(len(v.trials), "training run"), plural(len(v.seeds), "seed")
    text = f"Evidence: {runs}, paired by seed over {seeds}, {v.steps} {counted} each"
    if v.difference.lower is not None and v.difference.upper is not None:
        ends = dict.fromkeys((signed(v.difference.lower), signed(v.difference.upper)))
        text += f"; the loss differs by {' to '.join(ends)}"
    return f"{text}."


# ---------------------------------------------------------------- what to do


def counts(report: Report) -> list[str]:
    """`2 errors`, `1 note`."""
    return [plural(count, severity) for severity, count in counted(report.findings).items() if count]


def actions(report: Report) -> list[str]:
    """What to change, the most important first; notes are for who reads on."""
    steps = {
        "pass": _with_the_plan(report),
        "screened": "Verify before you rely on it: profile again without --quick.",
        "inconclusive": _undecided(report).advice.format(seeds=more_seeds(report)),
        "not_run": "Prove the plan: profile without --no-verify.",
        "fail": "Don't train with this plan yet: see the gates, repairs and findings below.",
    }
    undone, broken = unfinished.advice(report), unsound(report)
    first = undone or (_suggestion(broken) if broken else steps[report.verification.verdict])
    if not undone and not broken and not report.plan.is_low_precision:
        first = f"Change nothing for now: {_own(report)} is the fastest format that is known to train here."
    said = {"", USE_THE_PLAN} if first == steps["pass"] else {""}
    unsettled = [group for group in causes(report) if not settled(report.plan, group.members[0])]
    left = [group.told for group in unsettled if group.told.severity != "note" and group.told.suggestion not in said]
    return [*dict.fromkeys([first, *_suggestions(left)]), *_taken_care_of(report)]


_OWN_PRECISION = ("PA3", "PA5")
"""The rules of what a script chooses itself: the low formats that it stores things in, its autocast and its scaler."""


def has_the_plan(report: Report) -> bool:
    """Whether the script's own autocast does what a verified plan asks for, and came as near to float32."""
    return _asks_for_the_plan(report) and ended_like_the_plan(report.verification)


def _asks_for_the_plan(report: Report) -> bool:
    sound = not any(f.rule.startswith(_OWN_PRECISION) and f.severity != "note" for f in report.findings)
    return is_plain_autocast(report) and report.own_precision.get("autocast") == report.plan.default and sound


def is_plain_autocast(report: Report) -> bool:
    """Whether a verified plan asks for nothing but torch.autocast around the whole model."""
    plan = report.plan
    half = plan.default in ("bfloat16", "float16") and set(plan.modules.values()) == {plan.default}
    return half and not plan.ops and plan.loss_scale.mode == "none" and report.verification.verdict == "pass"


def _with_the_plan(report: Report) -> str:
    if has_the_plan(report):
        default = report.plan.default
        return f"Keep what you have: the script's own autocast is to {default}, and so is the plan."
    strays = any(finding.suggestion == USE_THE_PLAN for finding in report.findings)
    instead = " instead of the script's own casts and scaler" if strays else ""
    advice = f"Train with the plan{instead}: paste the lines that this report gives into your training script"
    if not _asks_for_the_plan(report):
        return f"{advice}."
    return f"{advice}; its own autocast ended {signed(ended(report.verification, AS_WRITTEN))} from float32."


def _taken_care_of(report: Report) -> list[str]:
    verdict = report.verification.verdict
    count = sum(settled(report.plan, finding) for finding in report.findings)
    if not count or verdict == "fail":  # the plan suits none, it is not to be used
        return []
    what = "Nothing else to do" if verdict in ("pass", "screened") else "No change is needed"
    return [f"{what} for {plural(count, 'finding')}: the plan runs those places in a format that suits them."]


def causes(report: Report) -> list[Group]:
    """Findings as they are told: those of one cause together, and what the plan settles apart."""
    return grouped(report.findings, lambda finding: settled(report.plan, finding))


def settlement(plan: Plan, finding: Finding) -> str:
    """What to add to its severity."""
    return " (settled by the plan)" if settled(plan, finding) else ""


def settled(plan: Plan, finding: Finding) -> bool:
    """Whether the plan runs the finding's place in none of the formats that it is about."""
    if finding.fqn is None:
        return False
    ops = {(op.fqn, op.op): op.format for op in plan.ops}
    planned = ops.get((finding.fqn, finding.op or ""), plan.modules.get(finding.fqn))
    if planned is None:
        return False
    named = finding.evidence.get("formats")
    return isinstance(named, str) and planned not in named.split(", ")


def notes(report: Report) -> list[str]:
    told = report.job.get("notes")
    return [prose(note) for note in told] if isinstance(told, list | tuple) else []


def more_seeds(report: Report) -> int:
    return max(8, 2 * len(report.verification.seeds))


def more_steps(report: Report) -> int:
    return max(100, 4 * (report.verification.steps or 0))


def what_decides(report: Report) -> dict[str, str]:
    """The option that a profile needs more of, with its value, where the verdict is open and one would decide it."""
    option = _undecided(report).option if report.verification.verdict == "inconclusive" else None
    more = {"--seeds": more_seeds, "--steps": more_steps}
    return {option: str(more[option](report))} if option else {}


def _suggestion(finding: Finding) -> str:
    (text,) = _suggestions([finding])
    return text


def _suggestions(findings: Sequence[Finding]) -> list[str]:
    """One for each remedy, with the places that need it."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        text = prose(finding.suggestion)
        places.setdefault(f"{text[:1].upper()}{text[1:]}", []).append(place(finding))
    named = {text: [*dict.fromkeys(filter(None, where))] for text, where in places.items()}
    return [f"{text} [{listing(where, 3, '; ')}]" if where else text for text, where in named.items()]


def place(finding: Finding) -> str:
    """`module, op, path:line`, as far as it is known."""
    location = finding.location
    parts = [finding.fqn, finding.op, f"{short_file(location.path)}:{location.line}" if location else None]
    return ", ".join(visible(part) for part in parts if part)


def short_file(path: str) -> str:
    """An installed library's file by the name that it is imported by."""
    return _PACKAGES.split(path)[-1]


def installed(path: str) -> bool:
    return _PACKAGES.search(path) is not None
