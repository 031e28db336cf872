"""Answers on outputs and hard inputs, from what was observed in the script's process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from precaudit.checking.deployments import formats_of
from precaudit.checking.records import LARGE_EXPONENT, Answer, Deployment, HardInput, HardKind, Observed, OutputMatch
from precaudit.finding import finding
from precaudit.formats import LOCAL_ERROR_LIMIT
from precaudit.model import Finding, Severity
from precaudit.words import number, plural, share

AGREEMENT = 0.99
"""Top-1 may differ in one of a hundred rows beyond near ties, which half precision flips anyway."""
KEEP = "keep that operation in float32, in the model or by profiling again"
SAFER = "plan the layers that overflow in bfloat16 or float32: profile again with this data"


class Hard(NamedTuple):
    """A kind of hard input: the rule of its findings, its name in sentences, and the header of its column."""

    rule: str
    name: str
    header: str


HARD: Mapping[HardKind, Hard] = {
    "zeros": Hard("PA741", "inputs of zeros", "zeros"),
    "large": Hard("PA742", f"inputs times 2^{LARGE_EXPONENT}", f"x 2^{LARGE_EXPONENT}"),
    "denormals": Hard("PA743", "denormal inputs", "denormal"),
    "batch of one": Hard("PA744", "a batch of one", "batch 1"),
    "longest": Hard("PA745", "the longest input seen", "longest"),
}


def outputs(observed: Observed, deployment: Deployment) -> Answer:
    matches = [match for match in observed.outputs if match.format == deployment.format]
    worst = max((m.relative_error for m in matches if m.relative_error is not None), default=None)
    found = [
        *(one for match in matches for one in _of_match(match, deployment)),
        *_of_raised(observed, deployment),
        *_of_unseen(observed, matches, blind=worst is None),
        *([_unchanged(deployment)] if worst == 0 and formats_of(deployment.plan) != ("float32",) else []),
    ]
    if worst is None:
        return Answer("outputs", "no output could be compared", tuple(found), False, deployment.format)
    batches = max(match.batches for match in matches)
    detail = (
        f"{plural(len(matches), 'output')} on the last {plural(batches, 'call')} in eval mode "
        f"({observed.execution}): largest relative error {share(worst)}, allowed {share(deployment.tolerance)}, "
        f"{deployment.why}"
    )
    return Answer("outputs", detail, tuple(found), format=deployment.format)


def named(match: OutputMatch | HardInput) -> str:
    """`model` or `model.output`."""
    return match.model + (f", output {match.output}" if isinstance(match, OutputMatch) and match.output else "")


def _of_match(match: OutputMatch, deployment: Deployment) -> Iterator[Finding]:
    yield from _of_finiteness(match)
    if match.relative_error is not None and match.relative_error > deployment.tolerance:
        yield _imprecise(match, match.relative_error, deployment)
    if match.rows and match.agreeing + match.near_ties < AGREEMENT * match.rows:
        yield _disagreeing(match)
    if match.unpaired:
        yield _unpaired(match)


def _of_finiteness(match: OutputMatch) -> Iterator[Finding]:
    name = named(match)
    if match.nonfinite:
        yield finding(
            "PA733",
            "error",
            f"{name}: {plural(match.nonfinite, 'value')} not finite in {match.format}, finite in float32",
            SAFER,
            output=name,
            nonfinite=match.nonfinite,
        )
    if match.reference_nonfinite:
        yield finding(
            "PA736",
            "warning",
            f"{name}: {plural(match.reference_nonfinite, 'value')} nan or inf in float32 already",
            "repair the model or its data first: precision is not the cause",
            output=name,
        )


def _imprecise(match: OutputMatch, error: float, deployment: Deployment) -> Finding:
    return finding(
        "PA731",
        "error",
        f"{named(match)} is off by {share(error)} of its rms in {match.format} (SNR {number(match.snr_db)} dB); "
        f"allowed is {share(deployment.tolerance)}: {deployment.why}",
        "keep its last layers in a wider format, or pass --tolerance if your use of the output allows more",
        output=named(match),
        relative_error=error,
        snr_db=match.snr_db,
        tolerance=deployment.tolerance,
    )


def _disagreeing(match: OutputMatch) -> Finding:
    return finding(
        "PA732",
        "error",
        f"{named(match)}: {share(match.agreement)} of {plural(match.rows, 'row')} have the same top-1 class as in "
        f"float32, and only {plural(match.near_ties, 'other')} near a tie; wanted are {share(AGREEMENT)}",
        "keep the classifier and what feeds it in a wider format; if these are no class scores, keep to the SNR",
        output=named(match),
        agreement=match.agreement,
        near_ties=match.near_ties,
    )


def _unpaired(match: OutputMatch) -> Finding:
    """Entries without counterpart: rounding decides at a threshold, but only for a few entries."""
    severe = match.unpaired > LOCAL_ERROR_LIMIT * match.entries
    return finding(
        "PA737",
        "error" if severe else "warning",
        f"{named(match)}: {match.unpaired:,} of {plural(match.entries, 'row')} that the model chose by their values "
        f"are not the same in {match.format} as in float32",
        "keep what computes the scores in a wider format"
        + ("" if severe else ", unless they lie at a threshold or a near tie, where any rounding decides"),
        output=named(match),
        entries=match.entries,
        unpaired=match.unpaired,
    )


def _of_raised(observed: Observed, deployment: Deployment) -> Iterator[Finding]:
    for format_name, model, said in observed.raised:
        if format_name == deployment.format:
            yield finding(
                "PA734",
                "error",
                f"{model} raises in {format_name}, and not in float32: {said}",
                KEEP,
                output=model,
            )


def _of_unseen(observed: Observed, matches: Sequence[OutputMatch], blind: bool) -> Iterator[Finding]:
    """A gate that can't see anything must not open."""
    for model, said in observed.unanswered.items():
        yield _unseen(model, said, "check it from a model file: build_model() and batches() suffice", blind)
    for match in matches:
        what = f"output {match.output}" if match.output else "its output"
        if match.missing:
            said = f"{what} is there in float32, and in {plural(match.missing, 'call')} not in {match.format}"
            yield _unseen(match.model, said, "find what in the model depends on a dtype, or on single values", blind)
        elif blind and not match.nonfinite:
            said = f"{what} has no finite value in float32"
            yield _unseen(match.model, said, "check it with weights and data that it answers with finite values", blind)


def _unchanged(deployment: Deployment) -> Finding:
    return finding(
        "PA735",
        "warning",
        f"every output is float32's in {deployment.format} too, bit for bit: zeros, a cache or whole numbers, or the "
        "plan's rounding doesn't reach it; this says nothing of the plan",
        "check trained weights, and that the outputs depend on the modules of the plan",
    )


def _unseen(model: str, said: str, remedy: str, blind: bool) -> Finding:
    message = f"what {model} returns in eval mode was not compared: {said}"
    return finding("PA735", "error" if blind else "warning", message, remedy, output=model)


def hard_inputs(observed: Observed, deployment: Deployment) -> Answer:
    tried = [hard for hard in observed.hard_inputs if hard.format == deployment.format]
    found = [one for hard in tried for one in _of_hard(hard)]
    kinds = dict.fromkeys(HARD[hard.kind].name for hard in tried if not hard.skipped)
    detail = f"finite with {', '.join(kinds)}" if kinds else "none could be tried"
    if found:
        detail = f"tried: {', '.join(kinds)}"
    return Answer("hard inputs", detail, tuple(found), bool(kinds), deployment.format)


def _of_hard(hard: HardInput) -> Iterator[Finding]:
    """An error where the plan fails and float32 doesn't; for scaled inputs, which aren't real ones, a warning."""
    with_ = f"{hard.model} with {HARD[hard.kind].name}"
    if hard.raised:
        yield _hard(hard, "error", f"{with_} raises in {hard.format}, and not in float32: {hard.raised}", KEEP)
    elif hard.nonfinite:
        yield _overflowed(hard, with_)
    elif hard.reference_nonfinite:
        yield _hard(
            hard,
            "warning",
            f"{with_} gives {plural(hard.reference_nonfinite, 'value')} nan or inf, in float32 too",
            "guard the model against such inputs (an eps, a clamp, a mask that keeps one entry) or keep them away",
        )


def _overflowed(hard: HardInput, with_: str) -> Finding:
    lost = f"{with_}: {plural(hard.nonfinite, 'value')} not finite in {hard.format}, finite in float32"
    if hard.safe_exponent is None:
        return _hard(hard, "error", lost, SAFER)
    room = f"inputs may grow by 2^{hard.safe_exponent}" if hard.safe_exponent else "not even twice the inputs are safe"
    return _hard(hard, "warning", f"{lost}; {room}", f"normalise or clamp the inputs, or {SAFER}")


def _hard(hard: HardInput, severity: Severity, message: str, suggestion: str) -> Finding:
    return finding(
        HARD[hard.kind].rule,
        severity,
        message,
        suggestion,
        output=hard.model,
        input=hard.kind,
        format=hard.format,
        safe_exponent=hard.safe_exponent,
    )
