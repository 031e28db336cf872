"""Runs in child processes, forked from a server that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.running.job import RunResult, RunSpec, ScriptError

RunProgress = Callable[[RunSpec, RunResult], None]
_GRACE_SECONDS = 20.0


class ChildRunner:
    """Runs one spec at a time in a fresh child; what a killed child had reported is kept."""

    def __init__(self, log: Path, progress: RunProgress = lambda spec, partial: None) -> None:
        os.environ.setdefault("PYTHONHASHSEED", "0")
        os.environ.setdefault("TORCHINDUCTOR_DISABLE_PROGRESS", "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["precaudit.running.preload"])
        self._log = log
        self._progress = progress

    def __call__(self, spec: RunSpec) -> RunResult:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(replace(spec, log=str(self._log)), sender))
        process.start()
        sender.close()
        try:
            return self._listen(spec, process, receiver)
        finally:
            _end(process)
            receiver.close()

    def _listen(self, spec: RunSpec, process: Any, receiver: Connection) -> RunResult:
        heard = RunResult(spec.label, spec.seed, "killed")
        interrupted = False
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                return replace(heard, status="interrupted") if interrupted else _killed(heard, process, self._log)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                _interrupt(process)
                continue
            if isinstance(message, PrecauditError):
                raise message
            if message.status != "killed":
                return replace(message, status="interrupted") if interrupted else message
            heard = message
            self._progress(spec, heard)


def _interrupt(process: Any) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGINT)


def _end(process: Any) -> None:
    """A script's own threads or children may keep its process alive after the result: it gets a moment, no more."""
    process.join(1.0)
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _killed(heard: RunResult, process: Any, log: Path) -> RunResult:
    process.join(_GRACE_SECONDS)
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        why = f"the script's process was killed by {name}{hint} after step {heard.steps}"
    else:
        why = f"the script left without returning (exit code {code}) after step {heard.steps}"
    tail = _tail(log)
    return replace(heard, exit_code=code, error=ScriptError("ProcessDied", why, f"{tail}\n{why}\n" if tail else why))


def _tail(log: Path, lines: int = 20) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(stream.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def _child(spec: RunSpec, sender: Connection) -> None:
    """The child's whole life: output into the log, the run, its result through the pipe."""
    _redirect_output(Path(spec.log or os.devnull), spec)
    from precaudit.running.script import run_job
    from precaudit.running.worker import flush_output, run

    try:
        message: object = run(spec, lambda: run_job(spec.job), sender.send)
    except PrecauditError as error:
        message = error
    except KeyboardInterrupt:
        message = RunResult(spec.label, spec.seed, "interrupted")
    flush_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send(message)
    except OSError:
        sys.exit(1)


def _redirect_output(log: Path, spec: RunSpec) -> None:
    stream = log.open("ab", buffering=0)
    os.write(stream.fileno(), f"\n===== {spec.label}, seed {spec.seed} =====\n".encode())
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
