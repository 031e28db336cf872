"""The error type of precaudit, with a message for the user and an exit code."""

from __future__ import annotations

import sys
from enum import IntEnum
from types import ModuleType


class ExitCode(IntEnum):
    """Exit codes of every command; `profile` and the gates (`compare`, `check`) share them."""

    OK = 0
    FINDING = 1
    USAGE = 2
    NOTHING_TO_MEASURE = 3
    SCRIPT_FAILED = 4


class PrecauditError(Exception):
    """An expected failure. Its message says what happened, where, and what to do next."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LacksRoom(PrecauditError):
    """There is no space for the files of precaudit itself during a run: not a failure of the script."""


def require(holds: bool, message: str) -> None:
    """Raise PrecauditError with this message unless the condition holds."""
    if not holds:
        raise PrecauditError(message)


def import_torch() -> ModuleType:
    """Import torch; PrecauditError where its libraries, or the memory for them, are missing."""
    try:
        import torch
    except (ImportError, OSError, MemoryError) as error:
        raise cannot_import(error) from error
    return torch


def cannot_import(error: BaseException) -> PrecauditError:
    return PrecauditError(
        f"what precaudit needs can't be imported into {sys.executable}: {error or type(error).__name__}; install "
        "precaudit and torch there with pip, or allow more memory (ulimit -v) if that is what was lacking"
    )


def require_count(name: str, value: object) -> None:
    """Raise PrecauditError unless `value` is an integer of at least 1."""
    counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(counts, f"{name} must be a whole number of at least 1, not {value!r}")
