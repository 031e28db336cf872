"""A temporary folder for gradients, which may be large: what a profile that was killed has left is removed by the next
one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PREFIX = "precaudit-gradients-"
_WITHOUT_LOCKS = (OSError, ImportError)  # of the file system, and of Windows
_MADE_SECONDS = 60.0
"""A younger folder may not be locked yet."""


@contextmanager
def scratch() -> Iterator[str]:
    """A folder that is locked while this process uses it; those that no process has locked are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(*_WITHOUT_LOCKS), _locked(left):
            if time.time() - left.stat().st_mtime > _MADE_SECONDS:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, ExitStack() as stack:
        with suppress(*_WITHOUT_LOCKS):  # where none is removed either
            stack.enter_context(_locked(folder))
        yield folder


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold the folder's lock; one of `_WITHOUT_LOCKS` where another process holds it, or it can't be had."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)
