"""Every rule that findings are made under: its stable id, what it means and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from precaudit.catalogue.check_rules import CHECK_RULES
from precaudit.catalogue.profile_rules import PROFILE_RULES
from precaudit.catalogue.rule import Rule
from precaudit.comparison.metrics import METRICS

COMPARED = "compare-"

CATALOGUE: Mapping[str, Rule] = {rule.id: rule for rule in (*PROFILE_RULES, *CHECK_RULES)}


def rule_of(name: str) -> Rule:
    """What is known of a rule; a report of a later version may have others."""
    metric = METRICS.get(name.removeprefix(COMPARED)) if name.startswith(COMPARED) else None
    if metric is not None:
        meaning = f"Between two reports: {metric.help}."
        remedy = "If the change is meant, profile again and commit the report as the new baseline."
        return Rule(name, metric.help, meaning, remedy)
    return CATALOGUE.get(name) or Rule(name, name, "A rule that this version of precaudit doesn't know.", "")
