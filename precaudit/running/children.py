"""Runs in child processes, forked from a server that has already imported torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from itertools import count
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.instrument.patches import wrapped
from precaudit.running.child_process import SIGNALS, child_main
from precaudit.running.file_guard import restore, set_aside_folder
from precaudit.running.job import Job, RunResult, RunSpec, ScriptError
from precaudit.running.run_logs import RunLogs
from precaudit.running.sources import SHARED_IMPORTS, inert_imports

RunProgress = Callable[[RunSpec, RunResult], None]
_NO_ENGINE = "unable to find an engine to execute"
_GRACE_SECONDS = 20.0
_NOTICE_SECONDS = 0.2
"""Until the end of the fork server is noticed."""
_TAIL_LINES = 20


def side_by_side(gpus: Sequence[str]) -> int:
    """How many runs go on at once."""
    return min(max(2, len(gpus)), _own_cpus())


class ChildRunner:
    """Runs specs in new child processes, `parallel` at a time; of a killed child the last partial result is kept.

    Every run gets the same number of threads, so that paired runs sum in the same order. Concurrent runs see all
    `gpus`, each in another order, so that each begins on another one.
    """

    def __init__(
        self,
        log: Path,
        progress: RunProgress = lambda spec, partial: None,
        parallel: int | None = None,
        threads: int | None = None,
        gpus: tuple[str, ...] = (),
    ) -> None:
        os.environ.setdefault("PYTHONHASHSEED", "0")
        self._context = multiprocessing.get_context("forkserver")
        self._logs, self._progress = RunLogs(log), progress
        self._parallel = parallel or side_by_side(gpus)
        self._threads = threads or max(1, _own_cpus() // self._parallel)
        self._living: dict[Any, int] = {}
        self._gpus = gpus
        self._files, self._gate = set_aside_folder(log), threading.Condition()
        self._alone = False
        self._interrupted = self._ready = False
        self._began = time.time()

    def start(self, job: Job) -> None:
        """Start the fork server and its imports, without waiting for them. What it imports is decided at its start, so
        a second call changes nothing."""
        if not self._ready:
            self._context.set_forkserver_preload(["precaudit.running.preload"])
            os.environ[SHARED_IMPORTS] = " ".join(inert_imports(job))
            self._ready = True
        with _main_module_left_alone(), _signals_held_back():
            forkserver.ensure_running()

    def __call__(self, spec: RunSpec) -> RunResult:
        return self.many([spec])[0]

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        """The results in the order of the specs; Ctrl-C interrupts the children and keeps their partial results."""
        if specs:
            self.start(specs[0].job)
        with _main_module_left_alone(), ThreadPoolExecutor(self._parallel) as pool:
            futures = [pool.submit(self._run, spec) for spec in specs]
            while True:
                try:
                    return [future.result() for future in futures]
                except KeyboardInterrupt:
                    if self._interrupted:
                        raise
                    self.interrupt()

    def interrupt(self) -> None:
        """Interrupt the children, which unwind and report, and start no more. Those that ignore it are killed after
        `_GRACE_SECONDS`, or at the second call."""
        if self._interrupted:
            self._signal(signal.SIGKILL)
            return
        self._interrupted = True
        self._signal(signal.SIGINT)
        deadline = threading.Timer(_GRACE_SECONDS, self._signal, (signal.SIGKILL,))
        deadline.daemon = True
        deadline.start()

    def _signal(self, number: signal.Signals) -> None:
        for process in list(self._living):
            if process.pid is not None and process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _run(self, spec: RunSpec) -> RunResult:
        """Run once more, alone, where a concurrent run interfered: by a file, a network port or memory."""
        result = self._once(spec)
        if not (result.crossed or _port_was_taken(result) or _memory_was_taken(result)) or self._interrupted:
            return result
        self._alone = True
        return self._once(spec)

    def _once(self, spec: RunSpec) -> RunResult:
        spec = replace(spec, threads=spec.threads or self._threads, since=self._began)
        receiver, sender = self._context.Pipe(duplex=False)
        with self._gate:
            self._gate.wait_for(self._may_start)
            self._restore_files()
            if self._interrupted:
                return RunResult(spec.label, spec.seed, "interrupted")
            place = next(place for place in count() if place not in self._living.values())
            log = self._logs.place(alone=not self._living)
            spec = replace(spec, gpus=_rotated(self._gpus, place), log=str(log))
            process = self._context.Process(target=child_main, args=(spec, sender))
            self._fork(process, spec)
            self._living[process] = place
        sender.close()
        try:
            result = self._listen(spec, log, process, receiver)
            self._progress(spec, result)
            return result
        finally:
            _end(process)
            with self._gate:
                self._living.pop(process, None)
                self._restore_files()
                if not self._living:
                    self._logs.join()
                self._gate.notify_all()
            receiver.close()

    def _fork(self, process: Any, spec: RunSpec) -> None:
        """Start the child; where the server was killed (out of memory, say), start another server first."""
        try:
            process.start()
        except (EOFError, OSError):
            time.sleep(_NOTICE_SECONDS)
            self.start(spec.job)
            process.start()

    def _may_start(self) -> bool:
        """Whether a run may start beside those that live: never once one of them has changed a file."""
        return not self._living or not (self._alone or self._files.exists())

    def _restore_files(self) -> None:
        """Restore the script's files when no run is left that may still need the changed ones."""
        if not self._living:
            restore(self._files)

    def _listen(self, spec: RunSpec, log: Path, process: Any, receiver: Connection) -> RunResult:
        partial = RunResult(spec.label, spec.seed, "killed")
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                return self._settled(_killed(partial, process, log))
            if isinstance(message, PrecauditError):
                raise message
            if isinstance(message, ScriptError):
                return self._settled(replace(partial, error=message))
            if not message.partial:
                return self._settled(_with_log_tail(message, log))
            partial = message
            self._progress(spec, partial)

    def _settled(self, result: RunResult) -> RunResult:
        return replace(result, status="interrupted") if self._interrupted else result


def _rotated(gpus: tuple[str, ...], place: int) -> tuple[str, ...]:
    first = place % len(gpus) if gpus else 0
    return gpus[first:] + gpus[:first]


def _main_module_left_alone() -> AbstractContextManager[None]:
    """Children don't import the parent's main module: it would cost every run, and would run a program again that has
    no `if __name__ == "__main__"`."""

    def without_main(original: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
        return {key: value for key, value in original(name).items() if not key.startswith("init_main")}

    return wrapped(spawn, "get_preparation_data", without_main)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process started in this block ignores signals that a terminal or supervisor sends to all processes; its
    children unblock them when they can handle them."""
    resource_tracker.ensure_running()  # its start would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_cpus() -> int:
    """Cores that this process may use, which containers and `taskset` limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _port_was_taken(result: RunResult) -> bool:
    """Whether a concurrent run held the fixed port that the script listens at, as `torch.distributed` does."""
    return result.error is not None and "address already in use" in result.error.traceback.lower()


def _memory_was_taken(result: RunResult) -> bool:
    """Whether memory ran out, or may have, for cuDNN doesn't tell: two concurrent runs may not fit where one does."""
    errors = [*result.end_state.refused.values(), *([result.error] if result.error else [])]
    return any(error.is_lack_of_memory or _NO_ENGINE in error.message.lower() for error in errors)


def _end(process: Any) -> None:
    """End the process, which a script's own threads or children may keep alive after its result."""
    process.join(1.0)
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _killed(partial: RunResult, process: Any, log: Path) -> RunResult:
    process.join(_GRACE_SECONDS)
    code = process.exitcode
    told = f"after step {partial.steps}, the last one that it told of"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        why = f"the script's process was killed by {name}{hint} {told}"
    else:
        why = (
            f"the script left without returning (exit code {code}) {told}; "
            "it may have put another program in its place (os.exec) or closed files that it had not opened"
        )
    tail = _tail(log)
    return replace(partial, exit_code=code, error=ScriptError("ProcessDied", why, f"{tail}\n{why}\n" if tail else why))


def _with_log_tail(result: RunResult, log: Path) -> RunResult:
    """For a script that exits with a code, add the end of its output, where the reason may be."""
    error = result.error
    if error is None or error.type != "SystemExit":
        return result
    return replace(result, error=replace(error, traceback=f"{_tail(log)}\n{error.traceback}".lstrip()))


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(stream.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:])
    except OSError:
        return ""
