"""What takes seconds to make and is the same for every report, kept in the user's cache folder."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from precaudit.cache import cache_folder
from precaudit.errors import PrecauditError
from precaudit.reporting.files import write_bytes
from precaudit.reporting.jsontext import dumps, loads

Value = TypeVar("Value")


def kept(key: str, make: Callable[[], Value]) -> Value:
    """What `make` returns, a JSON value, from the file of this key where there is a whole one. `key` names everything
    that the value depends on. Where nothing can be written, it is made each time."""
    path = None
    with suppress(OSError, RuntimeError):  # no home folder is a RuntimeError
        path = cache_folder() / f"{key}.json.gz"
        with suppress(EOFError, ValueError, zlib.error):
            value: Value = loads(gzip.decompress(path.read_bytes()))
            return value
    made = make()
    if path is not None:
        with suppress(PrecauditError):
            write_bytes(path, gzip.compress(dumps(made)))
    return made
