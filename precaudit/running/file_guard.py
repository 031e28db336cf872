"""Runs leave the script's files as they found them.

Files that a run overwrites, renames or removes are set aside first, and files that it creates, or still writes, once it
trains (checkpoints, logs) are noted; when no run is left, `restore` restores the former and removes the latter. So
every run begins with the same files, and the user's checkpoints survive. Files complete before training, such as a
prepared or downloaded dataset, stay where the first run creates them: creating them again would cost every run. The
user's files changed in place (appended to, mapped into memory, or opened by native code) are not detected, nor are
changes by programs that the script starts.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.running.file_registry import FileRegistry

_KEPT = ".kept"
_CACHES = frozenset("__pycache__ .cache .hypothesis .ipynb_checkpoints .nv .pytest_cache .triton".split())
_TICK = 0.01
"""Resolution of file timestamps in seconds."""
_WRITING, _CREATING = os.O_WRONLY | os.O_RDWR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def set_aside_folder(log: Path) -> Path:
    """The folder in which runs with this log set files aside."""
    return log.parent / ".set-aside"


@contextmanager
def locked(folder: Path, taken: str = "") -> Iterator[None]:
    """Hold the lock on a folder. Where another process holds it, wait, or raise PrecauditError with the message
    `taken`."""
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks
            opened = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, opened)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
            except BlockingIOError:
                raise PrecauditError(taken) from None
            # A process forked in the meantime has the folder open too.
            stack.callback(fcntl.flock, opened, fcntl.LOCK_UN)
        yield


class FileGuard:
    """Observes file operations in a run's process before they happen, except on the files in `ours`.

    Concurrent runs share the store: the first one that changes a file claims it and sets it aside. A run that reads
    a file that another has written has `crossed` it.
    """

    def __init__(self, store: Path, ours: Iterable[str]) -> None:
        self.training = self.crossed = False
        self._run = str(os.getpid())
        self._store = Path(os.path.realpath(store))
        self._ours = frozenset((str(self._store), *map(os.path.realpath, ours)))
        self._began, self._home = time.time() - _TICK, os.path.join(os.path.realpath(os.getcwd()), "")
        self._thread, self._registry = threading.local(), FileRegistry()
        self._existed: dict[str, bool] = {}
        self._answers: dict[str, Callable[..., object]] = {
            "open": self._opened,
            "os.rename": self._renamed,
            "os.remove": lambda path, *folder: _named_by(folder) and self._touch(_absolute(path)),
            "os.mkdir": lambda path, mode, *folder: _named_by(folder) and self._touch(_absolute(path)),
            "os.link": lambda _, target, *folders: _named_by(folders) and self._touch(_absolute(target)),
            "os.symlink": lambda _, target, *folder: _named_by(folder) and self._touch(_absolute(target)),
            "shutil.rmtree": lambda path, *_: [self._touch(file) for file in _below(_absolute(path))],
            "precaudit.training": lambda: [self._touch(file) for file in _being_written() if self._is_made(file)],
        }

    def listen(self) -> None:
        """Observe from now on until the process ends."""
        sys.addaudithook(self._on_event)
        for module, name, keyword in _native_writers():
            setattr(module, name, self._observed(getattr(module, name), keyword))

    def begin_training(self) -> None:
        """Note what the run creates from now on, and what it has created and still writes: that is a log."""
        if not self.training:
            self.training = True
            self._on_event("precaudit.training", ())

    def _observed(self, write: Callable[..., Any], keyword: str) -> Callable[..., Any]:
        @functools.wraps(write)
        def observed(*args: Any, **kwargs: Any) -> Any:
            path = args[1] if len(args) > 1 else kwargs.get(keyword)
            if isinstance(path, (str, os.PathLike)):
                self._on_event("open", (path, "wb", _CREATING))
            return write(*args, **kwargs)

        return observed

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        answer = self._answers.get(event)
        if answer is None or getattr(self._thread, "busy", False):
            return
        self._thread.busy = True
        try:
            with suppress(OSError, ValueError):  # the script's own call will say what is wrong
                answer(*arguments)
        finally:
            self._thread.busy = False

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        if isinstance(path, int):
            return
        path = os.path.realpath(os.fsdecode(path))
        if not flags & _WRITING:
            self.crossed |= not self._writers(path) <= {self._run}
        elif flags & os.O_TRUNC or not os.path.exists(path):
            self._touch(path, _move)
        elif not self._had(path) and self.training:
            self._touch(path)
        if flags & os.O_TRUNC and os.path.exists(path) and os.stat(path).st_nlink > 1:
            self._unlink_if_kept(path)

    def _writers(self, path: str) -> set[str]:
        note = self._note(path)
        return set(note.read_text().splitlines()[1:]) if note.exists() else set()

    def _unlink_if_kept(self, path: str) -> None:
        """Unlink a hard link to a set-aside file before it is overwritten under its new name."""
        if any(os.path.samefile(path, kept) for kept in self._store.glob(f"*{_KEPT}")):
            os.unlink(path)

    def _renamed(self, source: Any, target: Any, *folders: int) -> None:
        if _named_by(folders):
            source, target = _absolute(source), _absolute(target)
            for path in (source, *_below(source)):
                owned = self._touch(path)
                self._touch(target + path[len(source) :], made=owned or self.training)

    def _touch(self, path: str, keep: Callable[[str, Path], None] | None = None, made: bool | None = None) -> bool:
        """Claim a file that is about to change or to be created; returns whether it existed before the runs."""
        if self._is_ours(path) or self._is_cache(path):
            return False
        found = os.lstat(path) if os.path.lexists(path) else None
        if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return False
        owned = self._had(path)
        if owned or (self.training if made is None else made):
            self._store.mkdir(parents=True, exist_ok=True)
            with locked(self._store):  # a run that found the file claimed would change it before it is set aside
                if self._claim(path, owned) and owned:
                    (keep or _link)(path, self._note(path).with_suffix(_KEPT))
                for folder in filter(self._is_made, map(str, Path(path).parents)):
                    self._claim(folder, owned=False)
        return owned

    def _had(self, path: str) -> bool:
        """Whether the file was there when the run began, as seen when the run first touched it: what is changed in
        place looks new afterwards."""
        if path not in self._existed:
            self._existed[path] = os.path.lexists(path) and os.lstat(path).st_ctime < self._began
        return self._existed[path]

    def _is_made(self, path: str) -> bool:
        return self._existed.get(path) is False

    def _note(self, path: str) -> Path:
        """The note on a file that runs have touched: its path and origin, then the ids of these runs."""
        return self._store / hashlib.sha256(os.fsencode(path)).hexdigest()

    def _claim(self, path: str, owned: bool) -> bool:
        """Note the file; returns whether no run has touched it before."""
        note = self._note(path)
        if not note.exists():
            self._registry.refuse(note, path)
        with suppress(FileExistsError), note.open("x") as stream:
            stream.write(f"{json.dumps({'path': path, 'owned': owned})}\n{self._run}\n")
            if owned:
                self._registry.enter(note)
            return True
        if self._run not in self._writers(path):
            with note.open("a") as stream:
                stream.write(f"{self._run}\n")
        return False

    def _is_ours(self, path: str) -> bool:
        return not self._ours.isdisjoint((path, *map(str, Path(path).parents)))

    def _is_cache(self, path: str) -> bool:
        """Whether the path is in a cache, which can be rebuilt and which other processes share."""
        parts = Path(path.removeprefix(self._home)).parts
        return any(part in _CACHES or part.startswith("torchinductor_") for part in parts)


def _native_writers() -> Iterator[tuple[Any, str, str]]:
    """Functions that write files in native code, and the keyword of their second parameter, the path."""
    if importlib.util.find_spec("safetensors") is not None:
        importlib.import_module("safetensors")  # before its submodules import the function
    for module, name, keyword in (
        ("torch", "save", "f"),
        ("safetensors", "serialize_file", "filename"),
        ("safetensors.torch", "serialize_file", "filename"),
    ):
        if module in sys.modules:
            yield sys.modules[module], name, keyword


def _being_written() -> Iterator[str]:
    """Files that this process has open for writing."""
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed since
            if fcntl.fcntl(int(descriptor), fcntl.F_GETFL) & _WRITING:
                yield os.readlink(f"/proc/self/fd/{descriptor}")


def _named_by(folders: tuple[int, ...]) -> bool:
    """Whether paths are not relative to an open folder, as in shutil.rmtree, whose own event covers the whole tree."""
    return all(folder < 0 for folder in folders)


def _absolute(path: Any) -> str:
    """The absolute path, with links resolved except in its last component."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder), name)


def _below(folder: str) -> list[str]:
    """Everything below the folder, parents first; nothing for a file."""
    return [os.path.join(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)]


def _move(path: str, kept: Path) -> None:
    """Set aside a file whose content is about to change."""
    try:
        os.rename(path, kept)
    except OSError:  # another file system
        shutil.copy2(path, kept)


def _link(path: str, kept: Path) -> None:
    """Set aside a file whose name alone is about to change."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, kept, follow_symlinks=False)


def restore(store: Path) -> None:
    """Remove created files, innermost first, and restore the set-aside ones; one that can't be restored stays in the
    store, with a warning."""
    registry = FileRegistry()
    notes = {note: _read_note(note) for note in store.glob("?" * 64)}
    for note, (path, owned) in sorted(notes.items(), key=lambda item: (item[1][1], -len(item[1][0]))):
        try:
            if path:
                _undo(path, note.with_suffix(_KEPT) if owned else None)
            note.unlink()
            registry.leave(note)
        except OSError as error:
            warnings.warn(f"{path} could not be put back ({error.strerror}); see {note}", stacklevel=2)
    with suppress(OSError):
        store.rmdir()


def _read_note(note: Path) -> tuple[str, bool]:
    """Path, and whether the file existed before the runs; no path where a run was killed while it wrote the note, and
    so before it changed the file."""
    try:
        record = json.loads(note.read_text().splitlines()[0])
        return str(record["path"]), bool(record["owned"])
    except (ValueError, LookupError, TypeError):
        return "", False


def _undo(path: str, kept: Path | None) -> None:
    if kept is None:
        _remove(path)
    elif os.path.lexists(kept):  # else the run ended before it could
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)  # shutil.move would move the file into it
        shutil.move(kept, path)


def _remove(path: str) -> None:
    """Remove a file, or a folder if it is empty."""
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            with suppress(OSError):
                os.rmdir(path)
        else:
            os.unlink(path)
