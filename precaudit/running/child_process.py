"""The child's side of a run: the script sees a process like any other, and the parent gets its result."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from multiprocessing.connection import Connection
from os import _exit
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.running.file_guard import FileGuard, set_aside_folder
from precaudit.running.job import RunResult, RunSpec
from precaudit.running.stale_files import StaleFiles

SIGNALS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def child_main(spec: RunSpec, sender: Connection) -> None:
    """The child's main function: redirect output, run, send the result, call the script's exit handlers."""
    _redirect_output(Path(spec.log or os.devnull), spec)
    if len(spec.gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
    _become_main_process()
    signal.signal(signal.SIGINT, _interrupt_once)
    from precaudit.running.worker import flush_output

    message = _run(spec, sender)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit = _exit  # the server calls it to end the child; finalizing the interpreter would take a second
    flush_output()
    try:
        sender.send(message)
    except OSError:
        sys.exit(1)
    atexit._run_exitfuncs()


def _run(spec: RunSpec, sender: Connection) -> object:
    """The result, or precaudit's own error; an exception of the script is in its result."""
    from precaudit.running.script import run_job
    from precaudit.running.script_errors import internal_error
    from precaudit.running.worker import run

    stale_files, guard = StaleFiles(spec.since, spec.probe_dir), _file_guard(spec)

    def report(partial: RunResult) -> None:
        guard.begin_training()
        sender.send(partial)

    def with_files(result: RunResult) -> RunResult:
        return replace(result, stale_files=stale_files.read, crossed=guard.crossed)

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        result = run(spec, lambda: run_job(spec.job), report, lambda result: _leave(sender, with_files(result)))
        return with_files(result)
    except PrecauditError as error:
        return error
    except KeyboardInterrupt:
        return RunResult(spec.label, spec.seed, "interrupted")
    except Exception as error:
        return internal_error(error)


def _file_guard(spec: RunSpec) -> FileGuard:
    """The guard of the script's files. A run behind the first audited one counts as training from its start: everything
    that the script needs before training exists by then, and a log for TensorBoard would come from every run."""
    log = Path(spec.log or os.devnull)
    guard = FileGuard(set_aside_folder(log), [place for place in (spec.log, spec.probe_dir) if place])
    guard.training = not spec.audited or spec.neutralize
    guard.listen()
    return guard


def _become_main_process() -> None:
    """Make this process look like a main process to the script: its name, how it starts children, and its exit handlers
    (without the fork server's)."""
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.current_process().name = "MainProcess"
    vars(multiprocessing.process)["_parent_process"] = None
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    process = os.getpid()

    def left(code: int) -> None:
        if os.getpid() == process and threading.current_thread() is threading.main_thread():
            raise SystemExit(code)
        _exit(code)

    os._exit = left  # type: ignore[assignment]


def _leave(sender: Connection, result: RunResult) -> None:
    """Send the result and end the process of a script that catches every exception."""
    from precaudit.running.worker import flush_output

    flush_output()
    sender.send(result)
    atexit._run_exitfuncs()
    _exit(0)


def _interrupt_once(number: int, frame: Any) -> None:
    """Interrupt the script once: a second Ctrl-C must not lose the result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _redirect_output(log: Path, spec: RunSpec) -> None:
    stream = _opened(log)
    with suppress(OSError):  # a full disk
        os.write(stream.fileno(), f"\n===== {spec.label}, seed {spec.seed} =====\n".encode())
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)


def _opened(log: Path) -> FileIO:
    """Open the log, also where the script has removed its folder; os.devnull where it can't be opened."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(log, "ab")
    except OSError:
        return FileIO(os.devnull, "ab")
