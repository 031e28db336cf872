"""Every rule that findings are made under: its stable id, what it means and what to do about it (`rules.toml`), and the
metrics of comparisons."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from precaudit.catalogue.metrics import METRICS

COMPARED = "compare-"


@dataclass(frozen=True)
class Rule:
    """`title` names the finding in a few words; `meaning` and `remedy` are a sentence each."""

    id: str
    title: str
    meaning: str
    remedy: str

    @property
    def verb(self) -> str:
        """The command whose findings these are."""
        return "check" if self.id.startswith("PA7") else "profile"


_TEXTS = tomllib.loads(Path(__file__).with_name("rules.toml").read_text("utf-8"))
CATALOGUE: Mapping[str, Rule] = {rule_id: Rule(rule_id, **texts) for rule_id, texts in _TEXTS.items()}


def rule_of(name: str) -> Rule:
    """What is known of a rule; a report of a later version may have others."""
    metric = METRICS.get(name.removeprefix(COMPARED)) if name.startswith(COMPARED) else None
    if metric is not None:
        meaning = f"Between two reports: {metric.help}."
        remedy = "If the change is meant, profile again and commit the report as the new baseline."
        return Rule(name, metric.help, meaning, remedy)
    return CATALOGUE.get(name) or Rule(name, name, "A rule that this version of precaudit doesn't know.", "")
