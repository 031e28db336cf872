"""What an inconclusive verdict means, and what would decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precaudit.model import Cause, Report, Verification
from precaudit.reporting.facts import own_format


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


def undecided(report: Report) -> Undecided:
    """The explanation for the report's cause; reports of older versions have none, for which it is mostly noise."""
    cause = report.verification.cause or "noise"
    if cause == "float32" and report.job.get("stopped") == "ended":
        return ENDED
    if cause == "noise" and (needed := _seeds_needed(report.verification)) > _TOO_MANY_SEEDS:
        return _chaotic(needed)
    return DOUBLE if cause == "unchanged" and own_format(report) == "float64" else UNDECIDED[cause]


def _chaotic(seeds: float) -> Undecided:
    needed = f"some {float(f'{seeds:.1g}'):,.0f}" if seeds < 1e6 else "millions of"
    return Undecided(
        "these runs scatter so much more than the difference that is allowed that "
        f"{needed} seeds would be needed to tell.",
        "Judge by what you train for (a return, an accuracy) over several trainings of your own, with the plan and "
        "without it.",
    )


def _seeds_needed(verification: Verification) -> float:
    """How many seeds it takes to know the difference to within the margin; 0 where its bounds are unknown."""
    lower, upper, margin = verification.difference.lower, verification.difference.upper, verification.margin
    if lower is None or upper is None or not margin:
        return 0.0
    ratio = (upper - lower) / 2 / margin
    return len(verification.seeds) * ratio * ratio


def more_seeds(report: Report) -> int:
    return max(8, 2 * len(report.verification.seeds))


def more_steps(report: Report) -> int:
    return max(100, 4 * (report.verification.steps or 0))


def what_decides(report: Report) -> dict[str, str]:
    """The option with the value that would decide an inconclusive verdict; {} where none would."""
    option = undecided(report).option if report.verification.verdict == "inconclusive" else None
    more = {"--seeds": more_seeds, "--steps": more_steps}
    return {option: str(more[option](report))} if option else {}
