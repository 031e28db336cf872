"""A registry in the user's cache of the files that are set aside at the moment, shared by all profiles of that user."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from precaudit.cache import cache_folder
from precaudit.errors import PrecauditError


class FileRegistry:
    """Keeps a second profile from taking a file that a run of the first has written for the user's own, and restoring
    it over the original."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        with suppress(RuntimeError):
            self._folder = cache_folder() / "set-aside"

    def refuse(self, note: Path, path: str) -> None:
        """Raise PrecauditError where the file is in another store than the one of `note`."""
        other = self._holder(note)
        if other is not None and other != note.parent:
            raise PrecauditError(
                f"{path} is set aside by another profile, in {other}: wait for its end, or, where it was killed, "
                f"profile once more with --out {other.parent}, which puts the file back"
            )

    def _holder(self, note: Path) -> Path | None:
        if self._folder is not None:
            with suppress(OSError):
                store = Path(os.fsdecode((self._folder / note.name).read_bytes()))
                return store if (store / note.name).exists() else None
        return None

    def enter(self, note: Path) -> None:
        if self._folder is not None:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / note.name).write_bytes(os.fsencode(note.parent))

    def leave(self, note: Path) -> None:
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / note.name).unlink()
