"""The output of a script's runs in one file, each run's in one piece."""

from __future__ import annotations

import shutil
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path


class RunLogs:
    """A run that starts while others go on writes to a file of its own, which is appended when none goes on."""

    def __init__(self, whole: Path) -> None:
        self._whole = whole
        self._apart: list[Path] = []
        for left in takewhile(Path.exists, map(self._numbered, count(1))):  # by a profile that was killed
            with suppress(OSError):
                left.unlink()

    def place(self, alone: bool) -> Path:
        """Where the next run writes."""
        if alone:
            return self._whole
        path = self._numbered(len(self._apart) + 1)
        with suppress(OSError):
            path.unlink()  # one that could not be appended
        self._apart.append(path)
        return path

    def _numbered(self, number: int) -> Path:
        return self._whole.with_name(f"{self._whole.name}.{number}")

    def join(self) -> None:
        """Append the files of single runs; one that can't be appended, as on a full disk, is left as it is."""
        for path in self._apart:
            with suppress(OSError):
                with path.open("rb") as one, self._whole.open("ab") as whole:
                    shutil.copyfileobj(one, whole)
                path.unlink()
        self._apart.clear()
