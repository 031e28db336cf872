"""The one error type: a message for a person and the exit code of the contract."""

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
    """A failure to explain to a person: what happened, where, and what to do next."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LacksRoom(PrecauditError):
    """What precaudit itself keeps while a script runs has no room: no failure of the script's."""


def require(holds: bool, message: str) -> None:
    """Refuse an argument that can't be meant, in one sentence."""
    if not holds:
        raise PrecauditError(message)


def import_torch() -> ModuleType:
    """torch, which may lack its libraries or the memory for them."""
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
    """Refuse what is no whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= 1, f"{name} must be a whole number of at least 1, not {value!r}")  # type: ignore[operator]
