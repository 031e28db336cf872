"""Compares two reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from precaudit.catalogue.metrics import FAMILIES, METRICS
from precaudit.comparison import circumstances, headroom, plans, ranges, speed, structure, tensors
from precaudit.comparison.changes import Change, Comparison
from precaudit.comparison.matching import Matching, match_layers
from precaudit.comparison.thresholds import DEFAULTS, judge
from precaudit.model import Report
from precaudit.reporting import unfinished


def compare(
    base: Report, head: Report, thresholds: Mapping[str, float | None] = DEFAULTS, asked: Sequence[str] = ()
) -> Comparison:
    """All changes beyond the noise between seeds and days, and the metrics `asked` for by name that can't be
    compared."""
    matching = match_layers(base.layers, head.layers)
    unseen = (metric for metric in asked if not _seen(metric, base, head, matching))
    changes = [*judge(list(_changes(base, head, matching)), thresholds), *_unseen(unseen, thresholds)]
    return Comparison(
        changes=tuple(sorted(changes, key=_rank)),
        not_comparable=tuple(_not_comparable(base, head, matching)),
        measured_otherwise=tuple(circumstances.differences(base, head)),
        renamed={old: new for old, new in matching.names.items() if old != new},
        matched=len(matching.pairs),
        thresholds=dict(thresholds),
    )


def _unseen(metrics: Iterable[str], thresholds: Mapping[str, float | None]) -> Iterator[Change]:
    for metric in metrics:
        message = f"asked for by --fail-on {metric}, and can't be compared in these reports"
        yield Change(metric, thresholds[metric] or 0.0, message, regression=True)


def _seen(metric: str, base: Report, head: Report, matching: Matching) -> bool:
    """Whether both reports hold what the metric compares."""
    if metric == "verdict":
        return plans.judged(base, head)
    if metric == "headroom" or METRICS[metric].family == "plan":
        return comparable_plans(base, head)
    if metric in ("ops", "alignment", "dtypes", "constants"):
        return bool(base.ops and head.ops)
    if metric == "nonfinite" or METRICS[metric].family == "ranges":
        return bool(matching.pairs)
    return speed.measured(metric, base, head)


def _rank(change: Change) -> tuple[bool, int]:
    """Regressions first, then by family; the sort is stable, so within one the likeliest cause stays first."""
    return not change.regression, FAMILIES.index(METRICS[change.metric].family)


def _changes(base: Report, head: Report, matching: Matching) -> Iterator[Change]:
    yield from plans.verdict_changes(base, head)
    if unfinished.cut_short(head) and unfinished.is_empty(head):
        return  # no layer is gone: the run ended before its first one
    names, pairs = matching.names, matching.pairs
    ops = tensors.paired_ops(base.ops, head.ops, names)
    yield from plans.finding_changes(base, head, names)
    yield from structure.layer_changes(matching, base, head)
    yield from structure.alignment_changes(pairs, ops)
    if base.ops and head.ops:
        yield from structure.op_changes(base, head, names)
        yield from structure.constant_changes(ops)
    yield from structure.dtype_changes(pairs, ops)
    yield from ranges.range_changes(pairs, ops)
    yield from tensors.absent(pairs)
    yield from speed.speed_changes(base, head)
    if comparable_plans(base, head):
        yield from headroom.headroom_changes(pairs, base.plan, head.plan)
        yield from plans.format_changes(base.plan, head.plan, names)
        yield from plans.op_exception_changes(base.plan, head.plan, names)
        yield from plans.loss_scale_changes(base.plan.loss_scale, head.plan.loss_scale)


def same_target(base: Report, head: Report) -> bool:
    """Whether two targets are the same card, which may be called `h100` or `H100`."""
    return base.plan.target.casefold() == head.plan.target.casefold()


def comparable_plans(base: Report, head: Report) -> bool:
    return bool(base.plan.modules and head.plan.modules) and same_target(base, head)


def _not_comparable(base: Report, head: Report, matching: Matching) -> Iterator[str]:
    verdicts = base.verification.verdict, head.verification.verdict
    if "screened" in verdicts and "pass" in verdicts:
        name = ("base", "head")[verdicts.index("screened")]
        yield f"verdict: {name} was screened by one pair of runs (--quick), which proves less than a verification"
    if "not_run" in verdicts:
        said = " and ".join(f"{verdict} in {name}" for name, verdict in zip(("base", "head"), verdicts, strict=True))
        yield f"verdict: {said.replace('not_run', 'not run')}"
    planless = [name for name, report in (("base", base), ("head", head)) if not report.plan.modules]
    if planless:
        yield f"plan: none in {' and '.join(planless)}"
    elif not same_target(base, head):
        yield f"plan: made for different targets ({base.plan.target} and {head.plan.target})"
    for name, report in (("base", base), ("head", head)):
        if not report.ops:
            yield f"operations: none recorded in {name}"
    for role in tensors.unmeasured_roles(matching.pairs):
        yield f"{role} ranges: measured in one report only"
    steps = [report.job.get("steps") for report in (base, head)]
    if steps[0] != steps[1]:
        yield f"ranges: measured over {steps[0]} and {steps[1]} steps, so their extremes may differ by that alone"
    yield from speed.not_comparable(base, head)
