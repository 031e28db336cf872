"""A check in sentences, for all renderers, which add markup and escape it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precaudit.checking.outcomes import HARD
from precaudit.checking.records import Answer, CheckReport, HardInput, OutputMatch
from precaudit.finding import counted
from precaudit.words import is_number, listing, number, plural, prose, share, visible

OUTPUT_HEADERS = ("output", "format", "SNR dB", "error", "top-1", "finite")
HARD_HEADERS = ("model, format", *(hard.header for hard in HARD.values()))
ROWS = 24


def tone(report: CheckReport) -> str:
    if not report.passed:
        return "bad"
    return "open" if any(answer.status != "passed" for answer in report.answers) else "good"


def title(report: CheckReport) -> str:
    """The verdict in one line."""
    counts = counted(report.findings)
    formats = " and ".join(dict.fromkeys(each.format for each in report.deployments))
    where = f"{formats} on {visible(report.target)}"
    if not report.passed:
        failed = dict.fromkeys(answer.question for answer in report.answers if answer.status == "failed")
        return f"FAILED: {plural(counts['error'], 'error')} in {', '.join(failed)}; don't deploy {where} with this plan"
    unseen = dict.fromkeys(answer.question for answer in report.answers if not answer.measured)
    rest = [plural(counts["warning"], "warning")] * bool(counts["warning"]) + [f"{q} not measured" for q in unseen]
    beside = f" with {', '.join(rest)}" if rest else ""
    return f"PASSED{beside}: the plan holds for this model and data, {where}"


def question(report: CheckReport, answer: Answer) -> str:
    return f"{answer.question} ({answer.format})" if answer.format and len(report.deployments) > 1 else answer.question


def output_rows(matches: Sequence[OutputMatch]) -> list[list[str]]:
    """Rows on outputs, the worst first."""
    ordered = sorted(matches, key=lambda match: -(match.relative_error or 0.0))
    return [
        [
            visible(f"{match.model} {match.output}".rstrip()),
            match.format,
            _decibels(match.snr_db),
            share(match.relative_error) if is_number(match.relative_error) else number(match.relative_error),
            "-" if match.agreement is None else share(match.agreement),
            "missing" if match.missing else f"{match.nonfinite:,} lost" if match.nonfinite else "yes",
        ]
        for match in ordered
    ]


def _decibels(value: float | None) -> str:
    if value == math.inf:
        return "exact"
    return number(value) if value is None else f"{value:.1f}"


def hard_rows(tried: Sequence[HardInput]) -> list[list[str]]:
    """A row for each model and format, a column for each kind of hard input."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for hard in tried:
        cells.setdefault((hard.model, hard.format), {})[hard.kind] = outcome(hard)
    return [
        [f"{visible(model)} {name}", *(row.get(kind, "-") for kind in HARD)] for (model, name), row in cells.items()
    ]


def outcome(hard: HardInput) -> str:
    """The result of a hard input in a word or two."""
    if hard.skipped:
        return "-"
    if hard.raised:
        return "raises"
    if hard.nonfinite:
        return f"to 2^{hard.safe_exponent}" if hard.safe_exponent else "not finite"
    return "float32 too" if hard.reference_nonfinite else "finite"


def skipped(report: CheckReport) -> list[str]:
    """Why hard inputs were not tried, with the models for each reason."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for hard in report.hard_inputs:
        if hard.skipped:
            reasons.setdefault((HARD[hard.kind].name, hard.skipped), {})[hard.model] = None
    return [f"{kind}, {listing(models)}: {prose(why)}" for (kind, why), models in reasons.items()][:ROWS]
