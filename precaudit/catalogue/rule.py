"""A rule that findings are made under."""

from __future__ import annotations

from dataclasses import dataclass


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
