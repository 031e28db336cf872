"""The zoo's results as a page: what was missed first, then the loss scales, then every script."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

Result = dict[str, Any]
_BUDGET = 1e-4


def summary(results: list[Result], scripts: int | None = None) -> str:
    """`scripts` is how many there are, where fewer were run."""
    faults = [r for r in results if r["kind"] == "fault"]
    healthy = [r for r in results if r["kind"] == "healthy"]
    execution = " and ".join(sorted({r["execution"] for r in results if r["execution"]}))
    needless = [f"{r['name']} ({', '.join(r['needless'])})" for r in results if r["needless"]]
    lines = [
        "# The zoo",
        "",
        f"{len(faults)} faults: {_count(faults, 'caught')} caught, {_count(faults, 'blamed')} blamed rightly, "
        f"{_count(faults, 'verified')} with a verified plan.",
        f"{len(healthy)} healthy workloads: {_count(healthy, 'verified')} verified.",
        *([f"Cut off after {len(results)} of {scripts} scripts."] if scripts and len(results) < scripts else []),
        f"Execution: {execution}. {sum(r['seconds'] for r in results) / 60:.0f} minutes of profiling in sum over all "
        "scripts, each with one thread.",
        "",
        "Misses: " + (", ".join(r["name"] for r in results if not r["right"]) or "none") + ".",
        "",
        "Exceptions of a plan beyond the culprit, what is inside it, and its direct consumers: "
        + ("; ".join(needless) or "none")
        + ".",
        "",
        *_loss_scales([r for r in results if r.get("loss_scale")]),
        "## Faults",
        "",
        _table(faults),
        "",
        "## Healthy workloads",
        "",
        _table(healthy),
        "",
    ]
    return "\n".join(lines)


def _count(results: list[Result], key: str) -> int:
    return sum(bool(r[key]) for r in results)


def _table(results: list[Result]) -> str:
    headers = ["script", "formats", "verdict", "caught", "right blame", "exceptions", "needless", "evaluations", "s"]
    rows = [
        [
            r["name"],
            ",".join(r["formats"]),
            r["verdict"],
            r["caught"],
            r["blamed"],
            len(r.get("because", ())),
            len(r["needless"]),
            r.get("evaluations"),
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    return tabulate(rows, headers=headers, tablefmt="github")


def _loss_scales(results: list[Result]) -> list[str]:
    """Skips and energy are of real runs: the recommended scale in the plan's first trial, and the same plan and
    seed once more under torch's default scaler."""
    if not results:
        return []
    scales = [r["loss_scale"] for r in results]
    near = sum(max(abs(n - s["predicted_skips"]) for n in s["observed_skips"]) <= 1 for s in scales)
    rows = [
        [
            r["name"],
            s["window"] and f"2^{s['window'][0]} .. 2^{s['window'][1]}",
            s["init_scale"],
            f"{s['predicted_skips']:.0f}",
            " ".join(map(str, s["observed_skips"])),
            s["default"]["skipped"],
            _share(s["recommended"]["lost_energy"]),
            _share(s["default"]["lost_energy"]),
            _comparison(s),
        ]
        for r, s in zip(results, scales, strict=True)
    ]
    headers = "script,window,init scale,predicted skips,observed,default's,lost energy,default's,why".split(",")
    worse = [row[0] for row in rows if row[-1]]
    return [
        "## Loss scales",
        "",
        f"The recommended setting beside torch's default scaler (2^16, 2000) in {len(results)} scripts. Skipped steps "
        "were observed in real runs of the same plan: the recommended setting's in every trial, the default's in one "
        "more run of seed 0. Lost energy is the worst gradient tensor's share that float16 loses below its normal "
        "range at the scale that the run ended with, from the histograms of the float32 audit.",
        "",
        f"Predicted and observed skips differ by at most one step in {near} of {len(results)}. "
        f"Not better in both than the default: {', '.join(worse) or 'none'}.",
        "",
        tabulate(rows, headers=headers, tablefmt="github"),
        "",
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _comparison(scale: Result) -> str:
    """Why the recommended setting is not at least as good as the default in both; empty where it is."""
    ours, default = scale["recommended"], scale["default"]
    reasons = []
    if ours["skipped"] > default["skipped"]:
        reasons.append("starts higher, because gradients that small need it")
    if (ours["lost_energy"] or 0.0) > (default["lost_energy"] or 0.0):
        within = (ours["lost_energy"] or 0.0) <= _BUDGET
        reasons.append(f"keeps headroom{', within the budget of 1e-4' if within else ''}")
    return "; ".join(reasons)
