"""A cache in the user's cache folder, for values that take seconds to compute and are the same for every report."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from precaudit.cache import cache_folder
from precaudit.errors import PrecauditError
from precaudit.reporting.files import write_bytes
from precaudit.reporting.json_text import dumps, loads

Value = TypeVar("Value")


def cached(key: str, make: Callable[[], Value]) -> Value:
    """The JSON value of `make`, from the cache file of this key if there is a valid one. `key` names everything that
    the value depends on. If the file can't be written, the value is computed each time."""
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
