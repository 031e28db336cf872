"""What a trend says in a sentence: whether the newest report of each script is worse, better or as good as before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from precaudit.words import plural, visible

if TYPE_CHECKING:
    import pandas as pd


def summary(frame: pd.DataFrame) -> list[str]:
    """A sentence a script, those that got worse first."""
    told = [_direction(rows) for _, rows in frame.groupby("script", sort=False)]
    return sorted(told, key=lambda sentence: not sentence.startswith("Worse"))


def _direction(rows: pd.DataFrame) -> str:
    new = rows.iloc[-1]
    name = visible(new["report"])
    if not new["regressions"] >= 0:
        return f"Nothing to compare with: {name} is the first report of its script."
    if new["regressions"] > 0:
        return f"Worse: {plural(int(new['regressions']), 'regression')} in {name} against {visible(new['against'])}."
    if gains := list(_gains(rows)):
        return f"Better: {name} {' and '.join(gains)}, and nothing in it is worse than before."
    fell = rows[rows["regressions"] > 0]
    if len(fell):
        since, base = (visible(fell.iloc[-1][key]) for key in ("report", "against"))
        return f"Steady since {since}, which was worse than {base}: nothing in {name} is worse than there."
    return f"Steady: nothing in {name} is worse than in the reports before it."


def _gains(rows: pd.DataFrame) -> Iterator[str]:
    """What is better in the newest report than in the last one before it that measured something."""
    before = rows.iloc[:-1]
    measured = before[before["layers"] > 0]
    if measured.empty:
        return
    old, new = measured.iloc[-1], rows.iloc[-1]
    if new["verdict"] == "pass" and old["verdict"] in ("fail", "inconclusive"):
        yield f"is verified, as {visible(old['report'])} was not"
    if (fewer := int(old["errors"] - new["errors"])) > 0:
        yield _fewer(fewer, old["report"])


def _fewer(count: int, name: Any) -> str:
    return f"has {plural(count, 'error')} fewer than {visible(name)}"
