"""Changes of the plan, its verification and the findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from precaudit.comparison.changes import Change
from precaudit.comparison.headroom import binades
from precaudit.finding import fingerprint, ranked
from precaudit.model import SEVERITIES, LossScale, OpFormat, Plan, Report
from precaudit.reporting import unfinished

LADDER = {"pass": 0, "screened": 0, "inconclusive": 1, "fail": 2}
NOTHING_JUDGED = 3
# Time on Tensor Cores falls in this order; formats of one rank replace each other without loss of speed.
SPEED_RANK = {"float32": 0, "tf32": 1, "bfloat16": 2, "float16": 2, "float8_e4m3": 3, "float8_e5m2": 3}
LOSS_SCALE_NOISE = 4.0  # gradients' own tolerance: the window follows their largest and smallest magnitudes


def judged(base: Report, head: Report) -> bool:
    """Whether both were verified at all."""
    return all(side.verification.verdict in LADDER for side in (base, head))


def verdict_changes(base: Report, head: Report) -> Iterator[Change]:
    """A lower verdict; the lowest where head's run was not completed."""
    before, after = base.verification.verdict, head.verification.verdict
    if unfinished.cut_short(head) and (unfinished.is_empty(head) or not unfinished.cut_short(base)):
        why = "; ".join([str(unfinished.title(head)), *unfinished.details(head)])
        yield Change("verdict", float(NOTHING_JUDGED - LADDER.get(before, 0)), why, base=before, head=after)
    if before in LADDER and after in LADDER and LADDER[after] > LADDER[before]:
        reason = f": {head.verification.reason}" if head.verification.reason else ""
        message = f"verification says {after}, it said {before}{reason}"
        yield Change("verdict", float(LADDER[after] - LADDER[before]), message, base=before, head=after)


def finding_changes(base: Report, head: Report, names: Mapping[str, str]) -> Iterator[Change]:
    """Findings that base lacks, has fewer of, or with less severity; renaming a layer creates no new ones."""
    known: dict[str, list[str]] = {}
    for finding in base.findings:
        fqn = finding.fqn
        renamed = replace(finding, fqn=names.get(fqn, fqn) if fqn else fqn)
        known.setdefault(fingerprint(renamed), []).append(finding.severity)
    for finding in ranked(head.findings):
        before = known.get(fingerprint(finding), [])
        # Each of base's findings excuses one of head's, the least serious of those that are serious enough.
        excuses = [severity for severity in before if SEVERITIES.index(severity) <= SEVERITIES.index(finding.severity)]
        if excuses:
            before.remove(max(excuses, key=SEVERITIES.index))
            continue
        was = f" (a {before[0]} in base)" if before else ""
        message = f"{finding.rule}: {finding.message}{was}"
        yield Change(f"new_{finding.severity}s", 1.0, message, fqn=finding.fqn, op=finding.op, head=finding.rule)


def format_changes(base: Plan, head: Plan, names: Mapping[str, str]) -> Iterator[Change]:
    for old_fqn, old in base.modules.items():
        fqn = names.get(old_fqn)
        new = head.modules.get(fqn) if fqn else None
        if fqn is None or new is None or new == old:
            continue
        wider = SPEED_RANK[new] < SPEED_RANK[old]
        because = f": {head.because[fqn]}" if fqn in head.because else ""
        message = f"planned in {new}, was {old}{because}"
        yield Change("formats" if wider else "formats_changed", 1.0, message, fqn=fqn, base=old, head=new)


def op_exception_changes(base: Plan, head: Plan, names: Mapping[str, str]) -> Iterator[Change]:
    known: dict[tuple[str, str], str] = {}
    for op in sorted(base.ops, key=_speed, reverse=True):  # the widest of one op counts
        known[names.get(op.fqn, op.fqn), op.op] = op.format
    for op in head.ops:
        before = known.get((op.fqn, op.op))
        if before is None or SPEED_RANK[op.format] < SPEED_RANK[before]:
            because = head.because.get(f"{op.fqn}:{op.op}")
            message = f"{op.op} is now an exception in {op.format}" + (f": {because}" if because else "")
            yield Change("op_exceptions", 1.0, message, fqn=op.fqn, op=op.op, base=before, head=op.format)


def _speed(op: OpFormat) -> int:
    return SPEED_RANK[op.format]


def loss_scale_changes(base: LossScale, head: LossScale) -> Iterator[Change]:
    """A loss scale that is newly needed, moved beyond noise, or has no window any more."""
    if head.mode == "none":
        return
    before, after = _words(base), _words(head)
    if base.mode == "none":
        yield Change("loss_scale", math.inf, f"a loss scale is needed now, none was: {after}", head=after)
    elif base.window is not None and head.window is None:
        yield Change("loss_scale", math.inf, f"no loss scale fits any more; it was {before}", base=before)
    elif (moved := _moved(base, head)) > LOSS_SCALE_NOISE:
        message = f"the loss scale moved from {before} to {after}, {moved:g} binades"
        yield Change("loss_scale", moved, message, base=before, head=after)


def _moved(base: LossScale, head: LossScale) -> float:
    """How far an end of the window moved (or the initial scale, without a window), in octaves."""
    if base.window and head.window:
        return float(max(abs(new - old) for old, new in zip(base.window, head.window, strict=True)))
    return abs(binades(base.init_scale or 0.0, head.init_scale or 0.0) or 0.0)


def _words(scale: LossScale) -> str:
    if scale.window:
        return f"2^{scale.window[0]} to 2^{scale.window[1]}"
    return f"2^{math.log2(scale.init_scale):g}" if scale.init_scale else "torch's own"
