"""What takes seconds to make and is the same for every report, kept in the user's cache folder."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import orjson


def kept(key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from the file of this key where there is a whole one. `key` names everything that the
    value depends on. Where nothing can be written, it is made each time."""
    path = None
    with suppress(OSError, RuntimeError):  # no home folder is a RuntimeError
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "precaudit" / f"{key}.json.gz"
        with suppress(EOFError, ValueError, zlib.error):
            value: dict[str, Any] = orjson.loads(gzip.decompress(path.read_bytes()))
            return value
    value = make()
    if path is not None:
        with suppress(OSError):
            _write(path, gzip.compress(orjson.dumps(value)))
    return value


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing: reports may be written by several processes at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    try:
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise
