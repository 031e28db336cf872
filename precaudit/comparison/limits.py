"""`--fail-on` over one report: finding ids, severities and limits on what the report measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from precaudit.catalogue import CATALOGUE
from precaudit.comparison.headroom import PLACED_ROLES, headroom
from precaudit.comparison.speed import native_share
from precaudit.errors import PrecauditError
from precaudit.formats import FORMATS, Format
from precaudit.model import SEVERITIES, Finding, Plan, Report, TensorRecord
from precaudit.reporting.actions import settlement
from precaudit.words import inert, listing, plural, visible

MAX_PLACES = 3

Value = tuple[str, float]  # where, how much
Values = Callable[[Report], Iterable[Value]]
Rule = Callable[[Report], Iterator[str]]  # a sentence for each way in which the report breaks it


@dataclass(frozen=True)
class Limit:
    """A figure of a report; fails where a value lies above the threshold, or below it if `floor`."""

    help: str
    values: Values
    floor: bool = False

    def breaks(self, value: float, threshold: float) -> bool:
        return value < threshold if self.floor else value > threshold


def _of_planned(measure: Callable[[TensorRecord, Format], float | None]) -> Values:
    """A figure of every forward tensor of trained models in the format that the plan puts it in."""

    def values(report: Report) -> Iterator[Value]:
        for layer in report.layers:
            target = FORMATS.get(report.plan.modules.get(layer.fqn, report.plan.default)) if layer.trained else None
            for record in layer.tensors:
                if target and record.role in PLACED_ROLES and (value := measure(record, target)) is not None:
                    yield f"{_place(layer.fqn)} {record.role}", value

    return values


def _of_report(where: str, measure: Callable[[Report], float | None]) -> Values:
    """One figure of the whole report."""
    return lambda report: () if (value := measure(report)) is None else ((where, value),)


def _nonfinite(report: Report) -> Iterator[Value]:
    for layer in report.layers:
        for record in layer.tensors:
            yield f"{_place(layer.fqn)} {record.role}", float(record.stats.nonfinite)


def _float32_share(report: Report) -> float | None:
    formats = list(report.plan.modules.values())
    return sum(name == "float32" for name in formats) / len(formats) if formats else None


def _predicted_skips(report: Report) -> float | None:
    scale = report.plan.loss_scale
    return 0.0 if scale.mode == "none" else scale.predicted_skips


LIMITS: Mapping[str, Limit] = {
    "headroom": Limit(
        "factors of two from amax to the planned format's maximum, at least", _of_planned(headroom), floor=True
    ),
    "overflow": Limit(
        "share of a tensor's values above the planned format, at most",
        _of_planned(lambda record, target: record.stats.overflow_rate(target)),
    ),
    "flushed_energy": Limit(
        "share of a tensor's energy flushed in the planned format, at most",
        _of_planned(lambda record, target: record.stats.flushed_energy(target)),
    ),
    "nonfinite": Limit("inf and nan values of a tensor in float32, at most", _nonfinite),
    "float32_share": Limit("share of the layers planned in float32, at most", _of_report("the plan", _float32_share)),
    "predicted_skips": Limit("predicted skipped steps, at most", _of_report("the loss scale", _predicted_skips)),
    "loss_difference": Limit(
        "upper bound of the relative loss difference, at most",
        _of_report("the verification", lambda report: report.verification.difference.upper),
    ),
    "tensor_cores": Limit(
        "share of kernel time on native Tensor Cores, at least", _of_report("the kernels", native_share), floor=True
    ),
    "eligible_flops": Limit(
        "share of FLOPs that Tensor Cores can take, at least",
        _of_report("the operations", lambda report: report.tensor_cores.eligible_flops_share),
        floor=True,
    ),
}


def matches_fail_on(report: Report, rules: Sequence[str]) -> tuple[str, ...]:
    """A sentence for every rule that the report breaks; `PrecauditError` for a rule that means nothing.

    A rule is a finding id (`PA101`), a severity (`warning` means that or worse) or `METRIC:THRESHOLD`. A figure
    that was not measured breaks its rule: a gate that can't see must not open.
    """
    return tuple(sentence for rule in parse_rules(rules) for sentence in rule(report))


def parse_rules(rules: Sequence[str]) -> tuple[Rule, ...]:
    """What `matches_fail_on` applies; call it before the work to refuse a misspelt rule early."""
    return tuple(_parse(rule.strip()) for rule in rules)


def _parse(rule: str) -> Rule:
    metric, separator, text = rule.partition(":")
    severities: tuple[str, ...] = SEVERITIES
    if rule in severities:
        accepted = severities[: severities.index(rule) + 1]
        return lambda report: _findings(rule, [f for f in report.findings if f.severity in accepted], report.plan)
    if rule in CATALOGUE:
        return lambda report: _findings(rule, [f for f in report.findings if f.rule == rule], report.plan)
    if separator and metric in LIMITS:
        threshold = _threshold(rule, text)
        return lambda report: _limit(metric, threshold, list(LIMITS[metric].values(report)))
    raise PrecauditError(
        f"--fail-on {rule!r}: want a finding id such as PA101, a severity ({', '.join(SEVERITIES)}) "
        "or METRIC:THRESHOLD; --fail-on list shows them all"
    )


def _threshold(rule: str, text: str) -> float:
    threshold = fraction(text)
    if not math.isfinite(threshold):
        raise PrecauditError(f"--fail-on {rule!r}: the threshold must be a number, such as 2, 0.05 or 5%")
    return threshold


def fraction(text: str) -> float:
    """A number such as `0.05` or `5%`; nan if invalid."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return math.nan


def _findings(rule: str, found: Sequence[Finding], plan: Plan) -> Iterator[str]:
    if found:
        places = [f"{each.rule} in {_place(each.fqn)}{settlement(plan, each)}" for each in found]
        yield f"--fail-on {rule}: {_first(places, 'finding')}"


def _place(fqn: str | None) -> str:
    return "the job" if fqn is None else inert(visible(fqn)) or "the model itself"


def _limit(metric: str, threshold: float, values: Sequence[Value]) -> Iterator[str]:
    limit, rule = LIMITS[metric], f"--fail-on {metric}:{threshold:g}"
    broken = [f"{where} has {value:.3g}" for where, value in values if limit.breaks(value, threshold)]
    if not values:
        yield f"{rule}: not measured"
    elif broken:
        yield f"{rule}: {_first(broken, 'value')}, {'below' if limit.floor else 'above'} the threshold"


def _first(places: Sequence[str], noun: str) -> str:
    return f"{plural(len(places), noun)}: {listing(places, MAX_PLACES)}"


def rules_table(verb: str) -> str:
    """The table of rules for `--fail-on` of `precaudit profile` or `precaudit check`, 80 columns wide."""
    rules = [(rule.id, rule.title, rule.meaning) for rule in CATALOGUE.values() if rule.verb == verb]
    metrics = [(name, limit.help) for name, limit in LIMITS.items()]
    severities = ", ".join(SEVERITIES)
    return "\n".join(
        [
            tabulate(rules, ("RULE", "finding", "what it means"), "simple", maxcolwidths=[None, 24, 44]),
            "",
            tabulate(metrics, ("METRIC:THRESHOLD", "fails unless it is"), "simple", maxcolwidths=[None, 60]),
            "",
            f"A severity ({severities}) stands for findings as bad or worse.",
        ]
    )
