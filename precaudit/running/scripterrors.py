"""Exceptions as records: the script's own, without precaudit's frames, told apart from precaudit's."""

from __future__ import annotations

import traceback
from itertools import pairwise
from pathlib import Path

import precaudit
from precaudit.errors import PrecauditError
from precaudit.instrument import events, scopes
from precaudit.instrument.torchfunction import RAISED_BY
from precaudit.model import Location
from precaudit.running.job import INTERNAL, ScriptError

_PACKAGE = str(Path(precaudit.__file__).parent)
_TELLERS = (events.__file__, scopes.__file__)


def record_of(error: BaseException) -> ScriptError:
    return internal_error(error) if _is_ours(error) else script_error(error)


def internal_error(error: BaseException) -> ScriptError:
    why = f"precaudit itself failed, not the script ({type(error).__name__}: {error}); please report it"
    trace = "".join(traceback.format_exception(error))
    return ScriptError(INTERNAL, why, f"{trace}\n{why}")


def _is_ours(error: BaseException) -> bool:
    """Whether a listener raised it, which events and scopes call and which calls nothing of the script's."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        caller in _TELLERS and called.startswith(_PACKAGE) and called not in _TELLERS
        for caller, called in pairwise(files)
    )


def script_error(error: BaseException) -> ScriptError:
    """The script's exception, and those behind it, with its own frames only: what precaudit adds is left out."""
    told = traceback.TracebackException.from_exception(error)
    _leave_out_ours(told)
    own = list(told.stack)
    outside = [f for f in own if "site-packages" not in f.filename and "<frozen" not in f.filename] or own
    last = outside[-1] if outside else None
    location = Location(last.filename, last.lineno or 0) if last else None
    text = _in_words(error) or "".join(told.format())
    op = getattr(error, RAISED_BY, None)
    return ScriptError(type(error).__name__, str(told), text, location, op, raised_by=_raiser(error))


def _raiser(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _leave_out_ours(told: traceback.TracebackException) -> None:
    told.stack[:] = [f for f in told.stack if not f.filename.startswith(_PACKAGE) and "importlib" not in f.filename]
    for behind in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if behind is not None:
            _leave_out_ours(behind)


def _in_words(error: BaseException) -> str | None:
    """What needs no traceback to be understood."""
    if isinstance(error, SystemExit):
        code = error.code
        return f"the script exited with code {code}" if isinstance(code, int) else f"the script exited: {code}"
    return str(error) if isinstance(error, PrecauditError) else None
