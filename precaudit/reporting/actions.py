"""What to do, in sentences for all renderers, which add markup and escape it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from precaudit.finding import USE_THE_PLAN, counted
from precaudit.model import AS_WRITTEN, Finding, Plan, Report
from precaudit.reporting import costs, unfinished
from precaudit.reporting.endings import ended
from precaudit.reporting.facts import asks_for_the_plan, has_the_plan, own_format, settled, unsound
from precaudit.reporting.grouped import Group, grouped
from precaudit.reporting.places import place
from precaudit.reporting.undecided import is_open, more_seeds, undecided
from precaudit.words import capitalized, listing, plural, prose, signed


def actions(report: Report) -> list[str]:
    """The actions, the most important first; notes are left out."""
    undone, broken = unfinished.advice(report), unsound(report)
    first = undone or (_suggestions([broken])[0] if broken else _next_step(report))
    if not undone and not broken and not report.plan.is_low_precision:
        first = f"Change nothing for now: {own_format(report)} is the fastest format that is known to train here."
    said = USE_THE_PLAN if first == _with_the_plan(report) else ""
    unsettled = [group.told for group in causes(report) if not settled(report.plan, group.members[0])]
    unsaid = [replace(told, suggestion=told.suggestion.removeprefix(said).removeprefix(", and ")) for told in unsettled]
    left = [told for told in unsaid if told.severity != "note" and told.suggestion]
    return [*dict.fromkeys([first, *_suggestions(left)]), *_taken_care_of(report)]


def _next_step(report: Report) -> str:
    if is_open(report):
        return undecided(report).advice.format(seeds=more_seeds(report))
    steps = {
        "pass": _with_the_plan(report),
        "screened": "Verify before you rely on it: profile again without --quick.",
        "not_run": "Prove the plan: let precaudit profile train with it.",
        "fail": "Don't train with this plan yet: see the gates, repairs and findings below.",
    }
    return steps[report.verification.verdict]


def _with_the_plan(report: Report) -> str:
    if has_the_plan(report):
        default = report.plan.default
        return f"Keep what you have: the script's own autocast is to {default}, and so is the plan."
    strays = any(finding.suggestion.startswith(USE_THE_PLAN) for finding in report.findings)
    train = "Train with the plan" + (" instead of the script's own mixed precision" if strays else "")
    paste = "paste the lines that this report gives into your training script"
    if asks_for_the_plan(report):
        return (
            f"{train}: {paste}; its own autocast ended {signed(ended(report.verification, AS_WRITTEN))} from float32."
        )
    if not strays and (known := costs.without_gain(report)):
        train = f"You can train with the plan, though no gain in speed is {known}"
    return f"{train}: {paste}."


def _taken_care_of(report: Report) -> list[str]:
    if not (count := _settled(report)):
        return []
    what = "Nothing else to do" if report.verification.verdict in ("pass", "screened") else "No change is needed"
    return [f"{what} for {plural(count, 'finding')}: the plan runs those places in a format that suits them."]


def _settled(report: Report) -> int:
    """How many findings the plan settles; none where it is not to be used."""
    used = report.verification.verdict != "fail"
    return sum(settled(report.plan, finding) for finding in report.findings) if used else 0


def _suggestions(findings: Sequence[Finding]) -> list[str]:
    """A sentence for each suggestion, with the places that need it."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        places.setdefault(capitalized(prose(finding.suggestion)), []).append(place(finding))
    named = {text: [*dict.fromkeys(filter(None, where))] for text, where in places.items()}
    return [f"{text} [{listing(where, 3, '; ')}]" if where else text for text, where in named.items()]


def causes(report: Report) -> list[Group]:
    """The findings grouped by cause, separately for those that the plan settles."""
    return grouped(report.findings, lambda finding: settled(report.plan, finding))


def counts(report: Report) -> list[str]:
    """`2 errors`, `1 note`, `2 of them settled by the plan`."""
    found = [plural(count, severity) for severity, count in counted(report.findings).items() if count]
    count = _settled(report)
    which = "" if count == len(report.findings) else f"{count:,} of them "
    return [*found, f"{which}settled by the plan"] if count else found


def settlement(plan: Plan, finding: Finding) -> str:
    """The suffix for the severity of a settled finding."""
    return " (settled by the plan)" if settled(plan, finding) else ""
