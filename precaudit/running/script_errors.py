"""Exceptions as ScriptError records: the script's own without precaudit's frames, and precaudit's internal ones."""

from __future__ import annotations

import traceback
from itertools import pairwise
from pathlib import Path

import precaudit
from precaudit.errors import PrecauditError
from precaudit.instrument import events, patches, scopes
from precaudit.instrument.torch_function import RAISED_BY
from precaudit.model import Location
from precaudit.running.job import INTERNAL, ScriptError
from precaudit.tracing.ops import is_of_script

_PACKAGE = str(Path(precaudit.__file__).parent)
_DISPATCHERS = (events.__file__, scopes.__file__)


def record_of(error: BaseException) -> ScriptError:
    """The record of an exception, attributed to precaudit or to the script."""
    return internal_error(error) if _is_ours(error) else script_error(error)


def internal_error(error: BaseException) -> ScriptError:
    """The record of an exception that precaudit itself has raised."""
    lacks_memory = ScriptError(type(error).__name__, str(error), "").is_lack_of_memory
    what_now = "use a smaller batch or more memory" if lacks_memory else "please report it"
    why = f"precaudit itself failed, not the script ({type(error).__name__}: {error}); {what_now}"
    trace = "".join(traceback.format_exception(error))
    return ScriptError(INTERNAL, why, f"{trace}\n{why}")


def _is_ours(error: BaseException) -> bool:
    """Whether a listener raised it. Only `events` and `scopes` call listeners, and these call no code of the script;
    frames of `patches` only pass calls on."""
    walked = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    files = [file for file in walked if file != patches.__file__]
    return any(
        caller in _DISPATCHERS and called.startswith(_PACKAGE) and called not in _DISPATCHERS
        for caller, called in pairwise(files)
    )


def script_error(error: BaseException) -> ScriptError:
    """The script's exception and its causes, without precaudit's frames."""
    formatted = traceback.TracebackException.from_exception(error)
    _remove_own_frames(formatted)
    own = list(formatted.stack)
    outside = [f for f in own if is_of_script(f.filename)] or own
    last = outside[-1] if outside else None
    location = Location(last.filename, last.lineno or 0) if last else None
    text = _in_words(error) or "".join(formatted.format())
    op = getattr(error, RAISED_BY, None)
    return ScriptError(type(error).__name__, str(formatted), text, location, op, raised_by=_raiser(error))


def _raiser(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _remove_own_frames(error: traceback.TracebackException) -> None:
    error.stack[:] = [f for f in error.stack if not f.filename.startswith(_PACKAGE) and "importlib" not in f.filename]
    for cause in (error.__cause__, error.__context__, *(error.exceptions or ())):
        if cause is not None:
            _remove_own_frames(cause)


def _in_words(error: BaseException) -> str | None:
    """The message of an error that needs no traceback."""
    if isinstance(error, SystemExit):
        code = error.code
        return f"the script exited with code {code}" if isinstance(code, int) else f"the script exited: {code}"
    return str(error) if isinstance(error, PrecauditError) else None
