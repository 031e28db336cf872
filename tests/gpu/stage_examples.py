"""The packaged examples, profiled with native mixed precision from audit to verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stage import Setting, main

EXAMPLES = sorted(p for p in Path("precaudit/examples").glob("*.py") if not p.name.startswith("_"))


def measure(setting: Setting) -> dict[str, Any]:
    chosen = EXAMPLES[:1] if setting.dry else EXAMPLES
    results = {path.stem: _profile(path, setting) for path in chosen}
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    return {**results, "failures": failures}


def _profile(path: Path, setting: Setting) -> dict[str, Any]:
    folder = setting.out / path.stem
    options = ["--steps", "2", "--no-verify"] if setting.dry else ["--execution", "native"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "precaudit", "profile", *options, "--force", "--out", str(folder), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    (setting.out / f"{path.stem}.log").write_text(done.stdout + done.stderr)
    if done.returncode not in (0, 1):
        return {"exit": done.returncode, "error": done.stderr.strip()[-300:]}
    report = json.loads((folder / "report.json").read_text())
    verification = report["verification"]
    return {
        "exit": done.returncode,
        "seconds": time.perf_counter() - start,
        "verdict": verification["verdict"],
        "execution": verification["execution"],
        "default": report["plan"]["default"],
        "device": report["environment"].get("device"),
        "performance": report["performance"],
    }


if __name__ == "__main__":
    sys.exit(main("examples", measure))
