"""What an inconclusive verdict means, and what would decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from precaudit.model import TWIN, Cause, Report, Verification
from precaudit.model.proof import LOOKS
from precaudit.reporting.endings import ended, last_tried
from precaudit.reporting.facts import own_format
from precaudit.reporting.forecast import AFFORDABLE, seeds_needed


@dataclass(frozen=True)
class Undecided:
    """The meaning of an inconclusive verdict, and advice; `option` is the command-line option of which more would
    decide it."""

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
        "Profile again, and let the training runs finish: with the time and the memory that they need.",
    ),
    "early": Undecided(
        "a run under the plan has no last steps to compare with float32's, whatever more seeds would show.",
        "Let the script train for a fixed number of steps (no early stopping, no loss at which it ends), and profile "
        "again.",
    ),
}

ENDED = Undecided(
    UNDECIDED["float32"].meaning,
    "Let the script train longer than it does by itself, or profile one whose loss falls: a plan is judged by what "
    "float32 learns.",
)

UNTRAINED = Undecided(
    "the script computed gradients, but no weight was updated with them.",
    "Update the weights after loss.backward(), as optimizer.step() does, and profile again.",
)

DOUBLE = Undecided(
    "the model computes in float64, which autocast leaves alone, so no value was rounded.",
    "Build the model and its data in float32 first, see that it still learns, and profile again.",
)


def undecided(report: Report) -> Undecided:
    """The explanation for the report's cause; noise where it names none of these."""
    named = report.verification.cause
    cause = named if named and named in UNDECIDED else "noise"
    if cause == "float32" and report.verification.steps == 0:
        return UNTRAINED
    if cause == "float32" and report.job.get("stopped") == "ended":
        return ENDED
    if cause == "noise" and (needed := seeds_needed(report.verification)):
        return _noisy(needed) if needed < AFFORDABLE else _chaotic(report.verification, needed)
    return DOUBLE if cause == "unchanged" and own_format(report) == "float64" else UNDECIDED[cause]


def is_open(report: Report) -> bool:
    """Whether the runs could not tell; for a screening, whether float32 learned too little for a comparison."""
    v = report.verification
    return v.verdict == "inconclusive" or (v.verdict == "screened" and v.cause is not None)


def _noisy(seeds: int) -> Undecided:
    meaning = (
        "the difference may be one that is allowed or a larger one. If the plan is as good as float32, "
        f"{seeds} seeds will most likely show it."
    )
    return replace(UNDECIDED["noise"], meaning=meaning)


def _chaotic(v: Verification, seeds: float) -> Undecided:
    needed = f"some {float(f'{seeds:.1g}'):,.0f}" if seeds < 1e6 else "millions of"
    return Undecided(
        "these runs scatter so much more than the difference that is allowed that "
        f"{needed} seeds would be needed even for a plan as good as float32.{_repeated(v)}",
        "Judge by what you train for (a return, an accuracy) over several trainings of your own, with the plan and "
        "without it.",
    )


def _repeated(v: Verification) -> str:
    """How far single runs end from float32: under the plan, and in float32 itself."""
    own, planned = (
        [ended(v, trial.plan, trial.seed) for trial in v.trials if trial.plan == label]
        for label in (TWIN, last_tried(v))
    )
    if not own or not planned or not all(map(math.isfinite, (*own, *planned))):
        return ""
    return (
        f" Float32 ends {_rms(own):.1%} away from itself (rms) where its initial weights are rounded once; the plan "
        f"ends {_rms(planned):.1%} away."
    )


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value * value for value in values))


def more_seeds(report: Report) -> int:
    return seeds_needed(report.verification) or LOOKS[-1]


def more_steps(report: Report) -> int:
    return max(100, 4 * (report.verification.steps or 0))


def what_decides(report: Report) -> dict[str, str]:
    """The option with the value that would decide what is open; {} where none would."""
    option = undecided(report).option if is_open(report) else None
    more = {"--seeds": more_seeds, "--steps": more_steps}
    return {option: str(more[option](report))} if option else {}
