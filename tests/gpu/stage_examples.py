"""The packaged examples, profiled with native mixed precision from audit to verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stage import Setting, main

SECONDS = float(os.environ.get("LIMIT", "130")) - 15
"""For all of them, within the stage's limit: what one shows is not lost because the next takes long."""
EXTRA = "precaudit[examples]"
"""What an example asks for that has no data here."""
EXAMPLES = sorted(p for p in Path("precaudit/examples").glob("*.py") if not p.name.startswith("_"))


def measure(setting: Setting) -> dict[str, Any]:
    chosen, until = EXAMPLES[:1] if setting.dry else EXAMPLES, time.perf_counter() + SECONDS
    results = {path.stem: _profile(path, setting, until - time.perf_counter()) for path in chosen}
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    return {**results, "failures": failures}


def _profile(path: Path, setting: Setting, limit: float) -> dict[str, Any]:
    folder = setting.out / path.stem
    options = ["--steps", "2", "--no-verify"] if setting.dry else ["--execution", "native"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "precaudit", "profile", *options, "--force", "--out", str(folder), str(path)]
    log = setting.out / f"{path.stem}.log"
    with log.open("w") as stream:
        code = _ended(subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT), limit)
    if code not in (0, 1):
        why = log.read_text().strip()[-300:]
        if EXTRA in why:
            return {"exit": code, "skipped": why}
        return {"exit": code, "error": why if code is not None else f"not done within {limit:.0f} s: {why}"}
    report = json.loads((folder / "report.json").read_text())
    verification = report["verification"]
    return {
        "exit": code,
        "seconds": time.perf_counter() - start,
        "verdict": verification["verdict"],
        "execution": verification["execution"],
        "default": report["plan"]["default"],
        "device": report["environment"].get("device"),
        "performance": report["performance"],
    }


def _ended(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit code; None where the limit ended it, and the runs that it had started."""
    try:
        return process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
    return None


if __name__ == "__main__":
    sys.exit(main("examples", measure))
