"""What a report is worth for one script of the zoo, by the manifest: caught, rightly blamed, verified, needless."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]
_BESIDE_FLOAT8 = "float8 is for linear layers"


def accusations(report: Entry) -> list[tuple[str, str]]:
    """(fqn, sentence) of everything the report blames: findings above notes, exceptions of the plan, repairs."""
    found = [(f["fqn"] or "", f["message"]) for f in report["findings"] if f["severity"] != "note"]
    found += [(place.partition(":")[0], why) for place, why in exceptions(report).items()]
    found += [(r["fqn"], r["why"]) for r in report["verification"]["repairs"]]
    scale = report["plan"]["loss_scale"]
    if scale["mode"] != "none" and scale["window"] and scale["window"][0] > 0:
        found.append(("", f"gradients underflow without a loss scale of 2^{scale['window'][0]} or more"))
    return found


def exceptions(report: Entry) -> dict[str, str]:
    """`fqn` or `fqn:op` to the reason why the plan keeps it out of its default format."""
    because: dict[str, str] = report["plan"]["because"]
    return {place: why for place, why in because.items() if not why.startswith(_BESIDE_FLOAT8)}


def needless(entry: Entry, report: Entry) -> list[str]:
    """Exceptions outside the culprits, what is inside them, and their direct consumers."""
    blamed = entry["blamed"]
    culprits = [*blamed["fqns"], *blamed.get("consumers", [])]

    def excused(fqn: str) -> bool:
        return any(fqn == culprit or (culprit and fqn.startswith(f"{culprit}.")) for culprit in culprits)

    return [place for place in exceptions(report) if not excused(place.partition(":")[0])]


def judge(entry: Entry, report: Entry | None, code: int) -> Entry:
    if report is None:
        return {"verdict": f"exit {code}", "caught": False, "blamed": False, "verified": False, "needless": []}
    blamed, verification = entry["blamed"], report["verification"]
    keywords = [word.lower() for word in blamed["keywords"]]
    accused = accusations(report)
    right = [(f, why) for f, why in accused if f in blamed["fqns"] or any(w in why.lower() for w in keywords)]
    return {
        "verdict": verification["verdict"],
        "caught": bool(accused) or verification["verdict"] == "fail",
        "blamed": bool(right),
        "verified": verification["verdict"] == "pass",
        "needless": needless(entry, report),
        "reason": verification["reason"],
        "default": report["plan"]["default"],
        "because": report["plan"]["because"],
        "repairs": [f"{r['fqn']}:{r.get('op') or ''} {r['why']}" for r in verification["repairs"]],
        "errors": [f["message"] for f in report["findings"] if f["severity"] == "error"][:4],
        "evaluations": verification["evaluations"],
    }


def passed(entry: Entry, result: Entry) -> bool:
    """A healthy workload is verified and accused of no error; a fault is caught, rightly blamed, and its repaired plan
    is verified."""
    told = result["caught"] and result["blamed"] if entry["kind"] == "fault" else not result.get("errors")
    return bool(result["verified"] and told)
