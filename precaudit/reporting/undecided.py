"""What an inconclusive verdict means, and what would decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import NormalDist, fmean

from precaudit.model import Cause, Report, Verification
from precaudit.model.proof import ALPHA, LOOKS
from precaudit.reporting.endings import TWIN, ended, last_tried
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

DOUBLE = Undecided(
    "the model computes in float64, which autocast leaves alone, so no value was rounded.",
    "Build the model and its data in float32 first, see that it still learns, and profile again.",
)

AFFORDABLE = 100
"""More seeds than that are not asked for."""
_STEP = 8
_CLEAR, _HOPELESS = 1e-3, 1e6
"""In margins: a difference known so well is not in doubt for noise; one that scatters more is as good as that."""
_LIKELY = 0.9
"""How likely a number of seeds has to decide to be named."""


def undecided(report: Report) -> Undecided:
    """The explanation for the report's cause; reports of older versions have none, for which it is mostly noise."""
    cause = report.verification.cause or "noise"
    if cause == "float32" and report.job.get("stopped") == "ended":
        return ENDED
    if cause == "noise" and (needed := seeds_needed(report.verification)):
        return _noisy(needed) if needed < AFFORDABLE else _chaotic(report.verification, needed)
    return DOUBLE if cause == "unchanged" and own_format(report) == "float64" else UNDECIDED[cause]


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
    """The option with the value that would decide an inconclusive verdict; {} where none would."""
    option = undecided(report).option if report.verification.verdict == "inconclusive" else None
    more = {"--seeds": more_seeds, "--steps": more_steps}
    return {option: str(more[option](report))} if option else {}


# ---------------------------------------------------------------- how many seeds would decide


def seeds_needed(v: Verification) -> int | None:
    """How many seeds, the first of which are those that were run, will most likely verify a plan that is equal to
    float32; None where the bounds of the difference are unknown."""
    mean, lower, upper, margin = v.difference.mean, v.difference.lower, v.difference.upper, v.margin
    done = len(v.seeds)
    if mean is None or lower is None or upper is None or not margin or done < 2:
        return None
    reach = (upper - lower) / 2 / margin
    if not reach > _CLEAR:
        return None
    deviation = min(reach, _HOPELESS) * math.sqrt(done) / _quantile(done)
    numbers = chain(range(_STEP * (done // _STEP + 1), AFFORDABLE, _STEP), (AFFORDABLE * 2**k for k in range(40)))
    verify = (n for n in numbers if n > done and _chance(mean / margin, deviation, done, n) >= _LIKELY)
    return next(verify, AFFORDABLE * 2**40)


def _chance(mean: float, deviation: float, done: int, pairs: int) -> float:
    """The chance that a plan equal to float32 is within the margin after `pairs` pairs, where `mean` is that of the
    `done` first ones; in margins."""
    room = 1 - _quantile(pairs) * deviation / math.sqrt(pairs)
    later = NormalDist(mean * done / pairs, deviation * math.sqrt(pairs - done) / pairs)
    return later.cdf(room) - later.cdf(-room) if room > 0 else 0.0


def _quantile(pairs: int) -> float:
    from scipy import stats  # takes half a second, and is needed where a verdict is open alone

    return float(stats.t.ppf(1 - ALPHA, max(1, pairs - 1)))
