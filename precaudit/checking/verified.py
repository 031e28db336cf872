"""Verified: what the profile that made the plan said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from precaudit.checking.records import Answer, Deployment
from precaudit.finding import finding
from precaudit.model import Finding, Plan, Severity, Verdict
from precaudit.reporting.headline import BADGES
from precaudit.words import listing

PROFILE = "profile the script again, and deploy a plan that is VERIFIED"
_SAID: Mapping[Verdict, tuple[Severity, str, str]] = {
    "fail": (
        "error",
        "this plan was tried and is NOT VERIFIED: training with it was not as good as float32",
        f"{PROFILE}; the report beside the plan says what went wrong",
    ),
    "inconclusive": (
        "warning",
        "this plan was tried, and whether training with it is as good as float32 was NOT DECIDED",
        f"the report beside the plan says why; {PROFILE}",
    ),
    "screened": ("note", "this plan was screened by one pair of runs (--quick), not verified", PROFILE),
    "not_run": ("note", "no training was run with this plan: nothing has verified it", PROFILE),
}


def verified(plan: Plan, wanted: Sequence[Deployment]) -> tuple[Answer, ...]:
    """No answer for plans that don't tell, such as those written by hand, and for float32, which needs no proof."""
    if plan.verdict is None or not plan.is_low_precision:
        return ()
    others = [each.format for each in wanted if each.plan.modules != plan.modules]
    found = [*_found(plan), *_elsewhere(plan, others)]
    detail = f"the profile's verdict on this plan was {BADGES[plan.verdict].upper()}"
    detail += f", and there is none on it in {listing(others)}" if others else ""
    return (Answer("verification", detail, tuple(found)),)


def _found(plan: Plan) -> list[Finding]:
    if plan.is_edited:
        message = (
            "this plan was changed since its profile: the verdict is on what it was, and nothing has verified it now"
        )
        return [finding("PA761", "warning", message, PROFILE, verdict=plan.verdict)]
    said = _SAID.get(plan.verdict) if plan.verdict else None
    return [finding("PA761", *said, verdict=plan.verdict)] if said else []


def _elsewhere(plan: Plan, others: Sequence[str]) -> Iterator[Finding]:
    """A verdict is no word on the formats of --formats, and one on another plan no word at all."""
    if others and plan.verdict == "pass" and not plan.is_edited:
        message = f"the profile verified this plan as it is; in {listing(others)} nothing has verified it"
        remedy = "profile the script with these --formats for a plan that is verified in one of them"
        yield finding("PA761", "note", message, remedy, verdict=plan.verdict, formats=others)
