"""Files that a script reads and an earlier run of it wrote before it trained, or in a way that nobody heard: one to
go on from makes runs begin elsewhere."""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import Any

_MOST = 20
_WRITING = os.O_WRONLY | os.O_RDWR


class Leftovers:
    """Hears every file that this process opens. What was changed after `since` and before now was left by an earlier
    run; code, which a person may edit meanwhile, and what lies in `ours` are none of the script's."""

    def __init__(self, since: float, ours: str | None) -> None:
        self._since, self._now = since, time.time()
        self._ours = ours
        self._read: dict[str, None] = {}
        sys.addaudithook(self._heard)

    @property
    def read(self) -> tuple[str, ...]:
        return tuple(self._read)

    def _heard(self, event: str, arguments: Any) -> None:
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
