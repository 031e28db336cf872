"""The tests that need a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from stage import Setting, main

COMMAND = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
COMMAND += ["-c", os.devnull, "--rootdir", ".", "-o", "markers=gpu: needs a CUDA device"]
"""Without the project's settings, which are for plugins that a GPU machine may lack."""


def measure(setting: Setting) -> dict[str, Any]:
    where = ["--collect-only"] if setting.dry else []
    done = subprocess.run([*COMMAND, *where, *_files()], capture_output=True, text=True)
    (setting.out / "pytest.log").write_text(done.stdout + done.stderr)
    tail = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {tail[0]} (see pytest.log)")
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped|deselected)", tail[0])}
    return {"counts": counts, "summary": tail[0]}


def _files() -> list[str]:
    """Those that have such tests: others may need packages that a GPU machine is without."""
    return [str(path) for path in Path("tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]


if __name__ == "__main__":
    sys.exit(main("pytest", measure))
