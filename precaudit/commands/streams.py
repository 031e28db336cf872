"""Standard streams that fail: closed from the start, a reader that exits early, a full disk."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO

from precaudit.errors import PrecauditError

_ASCII = {"±": "+-", "→": "->", "…": "~", "█": "#"}
"""Replacements for characters in reports that a stream's encoding lacks."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_ASCII.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("precaudit-ascii", _replaced)


def emit(text: str, stream: TextIO) -> None:
    """Print `text`, with replacements for characters that the stream's encoding lacks. A closed pipe, as after `head`,
    is no error: files are still written and the exit code stays the same."""
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "precaudit-ascii").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        raise PrecauditError(f"cannot print: {error.strerror}") from error


@contextmanager
def robust_streams() -> Iterator[None]:
    """Around a command: all standard streams are open, and an error of stderr does not end it."""
    _open_closed()
    try:
        with redirect_stderr(_Robust(sys.stderr)):
            yield
    finally:
        _Robust(sys.stdout).flush()


class _Robust:
    """A stream that drops what it can't write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed() -> None:
    """Open streams that are closed (None in Python): the next opened file would otherwise get the descriptor that
    children write to."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _discard(stream: TextIO) -> None:
    """Redirect the stream to os.devnull, so that the interpreter doesn't fail to flush it at exit."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
