"""Profile every script of the zoo and judge precaudit by the manifest, which precaudit itself never reads.

    python tests/zoo/run.py [--out reports/zoo] [--only NAME ...] [--kind fault|healthy]

Writes results.json and README.md: was the fault caught, was the right place blamed, was the repaired plan
verified, was a healthy workload passed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

ZOO = Path(__file__).parent


def profile(entry: dict[str, Any], folder: Path) -> tuple[dict[str, Any] | None, int, float]:
    command = [sys.executable, "-m", "precaudit", "profile", "--out", str(folder), "--force"]
    command += ["--formats", ",".join(entry["formats"]), "--steps", str(entry["steps"]), str(ZOO / entry["script"])]
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    report = folder / "report.json"
    loaded = json.loads(report.read_text()) if report.exists() else None
    return loaded, done.returncode, time.perf_counter() - start


def accusations(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(fqn, op, sentence) of everything the report blames: findings above notes, exceptions of the plan, repairs."""
    found = [(f["fqn"] or "", f["op"] or "", f["message"]) for f in report["findings"] if f["severity"] != "note"]
    for place, why in report["plan"]["because"].items():
        fqn, _, op = place.partition(":")
        found.append((fqn, op, why))
    found += [(r["fqn"], r.get("op") or "", r["why"]) for r in report["verification"]["repairs"]]
    scale = report["plan"]["loss_scale"]
    if scale["mode"] != "none" and scale["window"] and scale["window"][0] > 0:
        found.append(("", "", f"gradients underflow without a loss scale of 2^{scale['window'][0]} or more"))
    return found


def judge(entry: dict[str, Any], report: dict[str, Any] | None, code: int) -> dict[str, Any]:
    if report is None:
        return {"caught": False, "blamed": False, "verdict": f"exit {code}", "verified": False, "promoted": 0}
    blamed, verdict = entry.get("blamed") or {}, report["verification"]["verdict"]
    accused = accusations(report)
    keywords = [word.lower() for word in blamed.get("keywords", [])]
    right = [
        (fqn, op, why)
        for fqn, op, why in accused
        if fqn in blamed.get("fqns", []) or any(word in why.lower() for word in keywords)
    ]
    return {
        "caught": bool(accused) or verdict == "fail",
        "blamed": bool(right),
        "verdict": verdict,
        "verified": verdict == "pass",
        "promoted": len(report["plan"]["because"]),
        "errors": [f["message"] for f in report["findings"] if f["severity"] == "error"][:4],
        "reason": report["verification"]["reason"],
        "because": report["plan"]["because"],
        "default": report["plan"]["default"],
    }


def passed(entry: dict[str, Any], result: dict[str, Any]) -> bool:
    if entry["kind"] == "healthy":
        return bool(result["verified"])
    return bool(result["caught"] and result["blamed"] and result["verified"])


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            r["name"],
            ",".join(r["formats"]),
            r["verdict"],
            r["caught"],
            r["blamed"],
            r["promoted"],
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    return tabulate(
        rows, headers=["script", "formats", "verdict", "caught", "right blame", "exceptions", "s"], tablefmt="github"
    )


def summary(results: list[dict[str, Any]]) -> str:
    faults = [r for r in results if r["kind"] == "fault"]
    healthy = [r for r in results if r["kind"] == "healthy"]
    lines = [
        "# The zoo",
        "",
        f"{len(faults)} faults: {sum(r['caught'] for r in faults)} caught, {sum(r['blamed'] for r in faults)} blamed "
        f"rightly, {sum(r['verified'] for r in faults)} with a verified plan.",
        f"{len(healthy)} healthy workloads: {sum(r['verified'] for r in healthy)} verified.",
        f"{sum(r['seconds'] for r in results) / 60:.0f} minutes in all, emulated on a CPU with two cores.",
        "",
        "Misses: " + (", ".join(r["name"] for r in results if not r["right"]) or "none") + ".",
        "",
        "## Faults",
        "",
        table(faults),
        "",
        "## Healthy workloads",
        "",
        table(healthy),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/zoo"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--kind", choices=("fault", "healthy"))
    arguments = parser.parse_args()
    entries = json.loads((ZOO / "manifest.json").read_text())
    entries = [e for e in entries if not arguments.only or e["name"] in arguments.only]
    entries = [e for e in entries if arguments.kind in (None, e["kind"])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for entry in entries:
        with tempfile.TemporaryDirectory() as folder:
            report, code, seconds = profile(entry, Path(folder))
        result = {key: entry[key] for key in ("name", "kind", "formats", "steps")} | judge(entry, report, code)
        result |= {"seconds": seconds, "exit_code": code}
        result["right"] = passed(entry, result)
        results.append(result)
        print(
            f"{'ok  ' if result['right'] else 'MISS'} {entry['kind']:8} {entry['name']:28} {result['verdict']:12} "
            f"{seconds:.0f} s  {result.get('reason', '')[:90]}",
            flush=True,
        )
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
        (arguments.out / "README.md").write_text(summary(results))
    return int(not all(r["right"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
