"""From verdicts to rates: the truth of every plan, how often it was told, and the page that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

BINS = (0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, np.inf)
NEAR = 1.5
EXCHANGED = "float32 of another seed"


def rate(hits: int, of: int) -> dict[str, Any]:
    """A share with its two-sided 95% Clopper-Pearson interval; null where nothing was counted."""
    if not of:
        return {"count": 0, "of": 0, "rate": None, "lower": None, "upper": None}
    interval = stats.binomtest(hits, of).proportion_ci()
    return {"count": hits, "of": of, "rate": hits / of, "lower": interval.low, "upper": interval.high}


def truths(rows: pd.DataFrame) -> pd.DataFrame:
    """`truth`, its standard error and `ratio`, its size over the margin, for every verdict on a plan that was trained
    with all seeds of all groups: measured in the verdict's own window, on the seeds of the other groups.
    `usual_ratio` is over the median margin of the training."""
    plans = ["training", "arm"]
    least = rows["half"].map(len).groupby([rows[column] for column in plans]).transform("min")
    thorough = rows[(least == least.max()) & rows["kind"].isin(["dial", "format"])]
    usual = rows.groupby("training")["margin"].median()
    found = []
    for _, plan in thorough.groupby(plans):
        for index, row in plan.iterrows():
            others = plan[plan["group"] != row["group"]][row["window"]]
            values = np.concatenate([np.asarray(part, float) for part in others]) if len(others) else np.array([np.nan])
            margin = row["margin"] if pd.notna(row["margin"]) else usual[row["training"]]
            found.append((index, values.mean(), stats.sem(values) if len(values) > 1 else np.nan, margin))
    frame = pd.DataFrame(found, columns=["index", "truth", "error", "margin"]).set_index("index")
    joined = thorough.drop(columns="margin").join(frame)
    size = joined["truth"].abs()
    return joined.assign(ratio=size / joined["margin"], usual_ratio=size / joined["training"].map(usual))


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = pd.DataFrame(results["rows"])
    known = truths(rows)
    known = known[known["ratio"].notna()]
    beyond, inside = known[known["ratio"] >= 1], known[known["ratio"] < 1]
    near = beyond[beyond["ratio"] < NEAR]
    sure = beyond[beyond["truth"].abs() - stats.norm.ppf(0.975) * beyond["error"] >= beyond["margin"]]
    equal = rows[rows["kind"] == "equal"]
    hopeful = known[(known["kind"] == "format") & (known["ratio"] < 0.5)]
    return {
        "false_pass": {
            "at or beyond the margin": _rate(beyond, "pass"),
            f"from 1 to {NEAR:g} margins": _rate(near, "pass"),
            "beyond the margin beyond doubt": _rate(sure, "pass"),
            "beyond the median margin of the training": _rate(known[known["usual_ratio"] >= 1], "pass"),
        },
        "false_fail": {
            "equal by construction": _rate(equal, "fail"),
            "formats off by less than half a margin": _rate(hopeful, "fail"),
            "anything inside the margin": _rate(inside, "fail"),
        },
        "verdicts": len(rows),
        "equal": {arm: _shares(part) for arm, part in equal.groupby("arm", sort=False)},
        "formats": {arm: _shares(part) for arm, part in rows[rows["kind"] == "format"].groupby("arm", sort=False)},
        "by_difference": _by_difference(known),
        "pairing": {name: _pairing(part) for name, part in rows.groupby("training", sort=False)},
        "nothing_to_learn": _guard(pd.DataFrame(results["nothing_to_learn"])),
        "learning": _rate(rows[rows["horizon"].notna()].assign(refused=~rows["learned"]), True, "refused"),
    }


def _rate(rows: pd.DataFrame, value: Any, column: str = "verdict") -> dict[str, Any]:
    return rate(int((rows[column] == value).sum()), len(rows))


def _shares(rows: pd.DataFrame) -> dict[str, Any]:
    shares = {name: float((rows["verdict"] == name).mean()) for name in ("pass", "fail", "inconclusive")}
    return {"verdicts": len(rows), **shares, "seeds": float(rows["pairs"].mean())}


def _by_difference(known: pd.DataFrame) -> list[dict[str, Any]]:
    """The verdict's operating characteristic, over bins of the true difference in margins."""
    bins = pd.cut(known["ratio"], BINS, right=False)
    return [
        {"from": part.left, "to": None if np.isinf(part.right) else part.right, **_shares(rows)}
        for part, rows in known.groupby(bins, observed=True)
    ]


def _pairing(rows: pd.DataFrame) -> dict[str, Any]:
    """Of one training: the scatter of pairs of equal or nearly equal plans beside that of runs that share no seed."""

    def scatter(arm: str) -> float:
        groups = [row[row["window"]] for _, row in rows[rows["arm"] == arm].iterrows()]
        values = [np.var(pairs, ddof=1) for pairs in groups if len(pairs) > 1]  # not of one that changed nothing
        return float(np.sqrt(np.mean(values))) if values else float("nan")

    def parted(arm: str) -> float | None:
        steps = [step for part in rows[rows["arm"] == arm]["parted"] for step in part]
        return float(np.median(steps)) if steps else None

    unpaired, paired = scatter(EXCHANGED), scatter("bfloat16")
    return {
        "margins": [float(rows["margin"].min()), float(rows["margin"].median()), float(rows["margin"].max())],
        "horizon": float(rows["horizon"].median()),
        "parted_one_ulp": parted("one ulp in the initial weights"),
        "parted_bfloat16": parted("bfloat16"),
        "deviation_unpaired": unpaired,
        "deviation_one_ulp": scatter("one ulp in the initial weights"),
        "deviation_bfloat16": paired,
        "reduction": unpaired / paired,
    }


def _guard(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        lesson: {
            "refused": _rate(part, False, "learned"),
            "not passed": rate(int((part["verdict"] != "pass").sum()), len(part)),
            "by_training": {name: float((~some["learned"]).mean()) for name, some in part.groupby("training")},
        }
        for lesson, part in rows.groupby("arm", sort=False)
    }


# ---------------------------------------------------------------- the page


def readme(results: Mapping[str, Any]) -> str:
    """The page of `results`, which hold their own summary."""
    found, machine, settings = results["summary"], results["machine"], results["settings"]
    passes, fails = found["false_pass"], found["false_fail"]
    sections = [
        "# Calibration of the verdict with real trainings",
        "Written by `python tests/calibration/train.py`; change that, not this page. How it is done: "
        "[tests/calibration](../../tests/calibration/README.md).",
        _conclusion(found),
        f"{results['trainings']} trainings of {settings['steps']} steps and {found['verdicts']} verdicts, over "
        f"{', '.join(settings['trainings'])} (`--groups {settings['groups']} --equal-groups "
        f"{settings['equal_groups']}`: the truth of a verdict is measured on {8 * (settings['groups'] - 1)} other "
        f"seeds). {_machine(machine)}",
        "## Wrong verdicts\n\nWith 95% Clopper-Pearson intervals. *Beyond doubt*: the 95% interval of the truth lies "
        "beyond the margin. Verdicts on the same seeds share their float32 runs, so they are not quite independent.",
        _table(
            [
                {"verdict": kind, "among plans": name, **_counted(value)}
                for kind, counted in (("false pass", passes), ("false fail", fails))
                for name, value in counted.items()
            ]
        ),
        "## Verdict by true difference\n\nRounding to fewer bits, and formats. The truth is measured on the seeds of "
        "the other groups; the margin is the one that the verdict named.",
        _table([{"true difference, in margins": _span(row)} | _percent(row) for row in found["by_difference"]]),
        "## Plans that are float32 by construction\n\nEach claims to be bfloat16. Runs of another seed are as noisy as "
        "runs can be, nothing is paired: no number of seeds that one would pay for tells them from a plan that is off.",
        _table([{"plan": arm, **_percent(row)} for arm, row in found["equal"].items()]),
        "## Formats",
        _table([{"plan": arm, **_percent(row)} for arm, row in found["formats"].items()]),
        "## Pairing\n\nHorizon: steps in which float32 and its twin, whose weights were rounded once to the plan's "
        "format, stay within 0.05%; then the step at which pairs part in truth. Deviations are between seeds, of the "
        "relative difference in the window that the verdict used.",
        _table([_pairing_row(name, row, settings["steps"]) for name, row in found["pairing"].items()]),
        "## Trainings that learn nothing\n\nThe plan is bfloat16 and harmless; a verdict of pass would prove nothing. "
        "*Random targets* leave no relation to learn, but a model still learns their mean and spread, and where its "
        "loss falls for that by more than the margin it has moved, as the guard says.",
        _table(
            [
                {
                    "training": lesson,
                    "guard refused": _share(row["refused"]),
                    "not passed": _share(row["not passed"]),
                    **{name: f"{share:.0%}" for name, share in row["by_training"].items()},
                }
                for lesson, row in found["nothing_to_learn"].items()
            ]
        ),
        f"Trainings that do learn were refused in {_share(found['learning'])} of verdicts.",
    ]
    return "\n\n".join(sections) + "\n"


def _conclusion(found: Mapping[str, Any]) -> str:
    passes, fails = list(found["false_pass"].values()), list(found["false_fail"].values())
    return "\n".join(
        [
            f"- False pass: {_share(passes[0])} of plans at or beyond the margin; {_share(passes[1])} of those nearest "
            f"to it (1 to {NEAR:g} margins). Target: at most 5% at the margin: {_met(passes[1], 0.05)}.",
            f"- False fail: {_share(fails[0])} of plans equal by construction. Target: at most 1%: "
            f"{_met(fails[0], 0.01)}.",
        ]
    )


def _met(value: Mapping[str, Any], target: float) -> str:
    if value["rate"] is None:
        return "not measured"
    if value["upper"] <= target:
        return "met, the interval included"
    return "met by the rate, not by the whole interval" if value["rate"] <= target else "**missed**"


def _machine(machine: Mapping[str, Any]) -> str:
    resumed = f"; {machine['resumed_tasks']} tasks were kept from a run before" if machine["resumed_tasks"] else ""
    busy = ", so other work ran beside it" if machine["load_before"] > 1 else ""
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, no GPU; Python {machine['python']}, torch "
        f"{machine['torch']}; {machine['processes']} processes of one thread, {machine['seconds']} s (load average "
        f"before the start {machine['load_before']:g}{busy}{resumed})."
    )


def _share(value: Mapping[str, Any]) -> str:
    if value["rate"] is None:
        return "none seen"
    return f"{value['rate']:.1%} ({value['count']} of {value['of']}; {value['lower']:.1%} to {value['upper']:.1%})"


def _counted(value: Mapping[str, Any]) -> dict[str, Any]:
    interval = "" if value["rate"] is None else f"{value['lower']:.2%} to {value['upper']:.2%}"
    share = "" if value["rate"] is None else f"{value['rate']:.2%}"
    return {"count": f"{value['count']} of {value['of']}", "rate": share, "95% interval": interval}


def _percent(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: f"{row[name]:.1%}" for name in ("pass", "fail", "inconclusive")}
    return {"verdicts": row["verdicts"], **shares, "seeds": f"{row['seeds']:.1f}"}


def _pairing_row(name: str, row: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {
        "training": name,
        "margin: least, median, most": ", ".join(f"{margin:.2%}" for margin in row["margins"]),
        "horizon": f"{row['horizon']:g} of {steps}",
        "bfloat16 parts": _step(row["parted_bfloat16"]),
        "one ulp parts": _step(row["parted_one_ulp"]),
        "deviation unpaired": f"{row['deviation_unpaired']:.2%}",
        "bfloat16": f"{row['deviation_bfloat16']:.3%}",
        "one ulp": f"{row['deviation_one_ulp']:.1e}",
        "times smaller": f"{row['reduction']:.0f}",
    }


def _span(row: Mapping[str, Any]) -> str:
    return f"{row['from']:g} to {row['to']:g}" if row["to"] else f"{row['from']:g} or more"


def _step(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _table(rows: list[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
