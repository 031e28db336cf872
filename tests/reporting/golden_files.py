"""Golden files: what a renderer wrote the last time somebody looked. PRECAUDIT_UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "golden"


def assert_golden(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("PRECAUDIT_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.exists(), f"{path} is missing: run once with PRECAUDIT_UPDATE_GOLDEN=1 and look at it"
    assert text == path.read_text(encoding="utf-8"), f"{name} changed: look, then PRECAUDIT_UPDATE_GOLDEN=1"
