"""The zoo's scripts as files: a repaired twin is its fault with a diff applied, which shows what the repair is.

    python tests/zoo/zoo_files.py

writes all twins into `tests/zoo/repaired`, to be run or read.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

ZOO = Path(__file__).parent
_HUNK = re.compile(r"@@ -(\d+)")


def repaired(fault: str, diff: str) -> str:
    """The text of a fault with a unified diff applied; ValueError where the diff is one of another text."""
    old, new, taken = fault.splitlines(keepends=True), list[str](), 0
    _, _, *hunks = diff.splitlines(keepends=True)  # what it is from and to
    for line in hunks:
        if hunk := _HUNK.match(line):
            new += old[taken : int(hunk[1]) - 1]
            taken = int(hunk[1]) - 1
            continue
        if line[0] != "+":
            if old[taken : taken + 1] != [line[1:]]:
                raise ValueError(f"line {taken + 1} is not {line[1:]!r}")
            taken += 1
        if line[0] != "-":
            new.append(line[1:])
    return "".join(new + old[taken:])


def file_of(script: str) -> Path:
    """The file of a script as the manifest names it; a repaired twin's is written anew."""
    path = ZOO / script
    if path.parent.name == "repaired":
        name = path.stem.removesuffix("_fixed")
        source = repaired((ZOO / f"faults/{name}.py").read_text(), (ZOO / f"repairs/{name}.diff").read_text())
        _write(path, source)
    return path


def _write(path: Path, text: str) -> None:
    """At once: another process may be running the file."""
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def every() -> list[str]:
    """All scripts, as the manifest names them."""
    written = [*ZOO.glob("faults/*.py"), *ZOO.glob("healthy/*.py")]
    twins = [f"repaired/{path.stem}_fixed.py" for path in ZOO.glob("repairs/*.diff")]
    return sorted([*(f"{path.parent.name}/{path.name}" for path in written), *twins])


if __name__ == "__main__":
    for script in every():
        print(file_of(script))
