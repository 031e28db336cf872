"""Files that a script reads and that an earlier run of it has written without `file_guard` restoring them. A run that
resumes from such a file does not begin where the others did."""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import Any

_MOST = 20
_WRITING = os.O_WRONLY | os.O_RDWR


class StaleFiles:
    """Observes every file that this process opens for reading. One that was modified between `since` and now was left
    by an earlier run, except code (the user may edit it meanwhile) and files in the folder `ours`."""

    def __init__(self, since: float, ours: str | None) -> None:
        self._since, self._now = since, time.time()
        self._ours = ours
        self._read: dict[str, None] = {}
        sys.addaudithook(self._on_event)

    @property
    def read(self) -> tuple[str, ...]:
        return tuple(self._read)

    def _on_event(self, event: str, arguments: Any) -> None:
        if event != "open" or len(self._read) >= _MOST:
            return
        path, _, flags = arguments
        if isinstance(path, int) or flags & _WRITING:
            return
        path = os.path.abspath(os.fsdecode(path))
        try:
            found = os.stat(path)
        except OSError:
            return
        if stat.S_ISREG(found.st_mode) and self._since <= found.st_mtime < self._now and not self._is_ours(path):
            self._read[path] = None

    def _is_ours(self, path: str) -> bool:
        code = path.endswith((".py", ".pyc"))
        return code or (self._ours is not None and path.startswith(os.path.join(self._ours, "")))
