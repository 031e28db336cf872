"""Standard streams that end before precaudit does: closed from the start, a reader that leaves, a full disk."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO

from precaudit.errors import PrecauditError

SPELLED = {"±": "+-", "→": "->", "…": "~", "█": "#"}
"""What stands for the signs that reports have, where a stream's encoding lacks them."""


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(SPELLED.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("precaudit-spelled", _spelled)


def emit(text: str, stream: TextIO) -> None:
    """Print, with other signs for what the stream's encoding can't hold. A reader that has left, as `head` does, costs
    neither the files that are written next nor the exit code."""
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "precaudit-spelled").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        _let_go(stream)
    except OSError as error:
        _let_go(stream)
        raise PrecauditError(f"cannot print: {error.strerror}") from error


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Around a command: its streams are there, and stderr, where progress is told, never ends it."""
    _open_closed()
    try:
        with redirect_stderr(_Lasting(sys.stderr)):
            yield
    finally:
        _Lasting(sys.stdout).flush()


class _Lasting:
    """A stream that drops what it can't write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _let_go(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _let_go(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed() -> None:
    """Python has None for a closed stream, and the next file that is opened would get its number, to which children
    write."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _let_go(stream: TextIO) -> None:
    """What is still buffered goes nowhere, so that the interpreter's end doesn't try again."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
