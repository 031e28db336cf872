"""Reading untrusted JSON files and writing files atomically, with errors for the user."""

from __future__ import annotations

import codecs
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.reporting.json_text import loads

MAX_BYTES = 512 * 2**20


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or a `PrecauditError` that says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a device may have no end
        if len(content) > MAX_BYTES:
            raise PrecauditError(
                f"{path}: more than the {MAX_BYTES // 2**20} MB that precaudit reads; "
                "profile fewer layers or steps, or check that this is the file you meant"
            )
        return loads(content.removeprefix(codecs.BOM_UTF8))  # Windows' editors write one
    except OSError as error:
        raise PrecauditError(f"{path}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise PrecauditError(
            f"{path}: not JSON that can be read ({error}); the file may be cut off or not a report at all: "
            "write it again, or restore it from where it came"
        ) from error


def written_file(path: Path, name: str = "report.json", hint: str = "") -> Path:
    """The file itself, or the one of that name in a folder that `profile` wrote."""
    if not path.is_dir():
        return path
    if not (path / name).is_file():
        raise PrecauditError(f"{path}: a folder without {name}{hint}")
    return path / name


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, all or nothing; lone surrogates become visible escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or leave what was there: a temporary file beside it takes its place when complete."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # /dev/stdout and pipes can't be replaced
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        in_the_way = "its folder is a file" if isinstance(error, FileExistsError) else None
        room = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise PrecauditError(
            f"cannot write {path}: {in_the_way or error.strerror or error}; nothing was changed there: "
            f"{room}choose another place, then run again"
        ) from error


def write_each(paths: Iterable[Path], write: Callable[[Path], None]) -> tuple[list[Path], list[str]]:
    """Write each file; returns those written, and for the others the reasons. An error in one does not prevent
    others."""
    written, problems = [], []
    for path in paths:
        try:
            write(path)
            written.append(path)
        except PrecauditError as error:
            problems.append(str(error))
    return written, problems


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
