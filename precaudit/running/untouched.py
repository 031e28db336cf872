"""Runs leave the script's files as they found them.

What a run writes over, renames or removes is set aside first, and what it makes once it trains (checkpoints, logs) is
noted; when no run is left, `put_back` restores the one and removes the other. So every run begins with the same
files, and a person's checkpoints outlive them. What is made before training, such as a prepared or downloaded
dataset, stays, for making it again would cost every run. Files changed in place (appended to, mapped into memory, or
opened by native code) are not seen, nor is what other programs do that the script starts.
"""

from __future__ import annotations

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
from contextlib import suppress
from pathlib import Path
from typing import Any

from precaudit.running.borrowed import Borrowed

_KEPT = ".kept"
_CACHES = frozenset("__pycache__ .cache .hypothesis .ipynb_checkpoints .nv .pytest_cache .triton".split())
_TICK = 0.01
"""Files are stamped with the time of the system's last tick, which may be this many seconds ago."""
_WRITING, _CREATING = os.O_WRONLY | os.O_RDWR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def store_beside(log: Path) -> Path:
    """Where the runs that write into this log set files aside."""
    return log.parent / ".set-aside"


class Keeper:
    """Hears in a run's process what is about to happen to files; those in `ours` are none of the script's.

    Runs beside each other share the store: the first that touches a file claims it, and sets it aside. One that reads
    what another has written has `crossed` it.
    """

    def __init__(self, store: Path, ours: Iterable[str]) -> None:
        self.training = self.crossed = False
        self._run = str(os.getpid())
        self._store = Path(os.path.realpath(store))
        self._ours = frozenset((str(self._store), *map(os.path.realpath, ours)))
        self._began, self._home = time.time() - _TICK, os.path.join(os.path.realpath(os.getcwd()), "")
        self._thread, self._borrowed = threading.local(), Borrowed()
        self._answers: dict[str, Callable[..., object]] = {
            "open": self._opened,
            "os.rename": self._renamed,
            "os.remove": lambda path, *folder: _named_by(folder) and self._touch(_absolute(path)),
            "os.mkdir": lambda path, mode, *folder: _named_by(folder) and self._touch(_absolute(path)),
            "os.link": lambda _, target, *folders: _named_by(folders) and self._touch(_absolute(target)),
            "os.symlink": lambda _, target, *folder: _named_by(folder) and self._touch(_absolute(target)),
            "shutil.rmtree": lambda path, *_: [self._touch(file) for file in _below(_absolute(path))],
        }

    def listen(self) -> None:
        """For the rest of this process's life."""
        sys.addaudithook(self._heard)
        for module, name, keyword in _native_writers():
            setattr(module, name, self._told(getattr(module, name), keyword))

    def _told(self, write: Callable[..., Any], keyword: str) -> Callable[..., Any]:
        @functools.wraps(write)
        def told(*args: Any, **kwargs: Any) -> Any:
            path = args[1] if len(args) > 1 else kwargs.get(keyword)
            if isinstance(path, (str, os.PathLike)):
                self._heard("open", (path, "wb", _CREATING))
            return write(*args, **kwargs)

        return told

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
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
        if flags & os.O_TRUNC and os.path.exists(path) and os.stat(path).st_nlink > 1:
            self._part(path)

    def _writers(self, path: str) -> set[str]:
        note = self._note(path)
        return set(note.read_text().splitlines()[1:]) if note.exists() else set()

    def _part(self, path: str) -> None:
        """A renamed file is still the one that was set aside: what is written under its new name must be another."""
        if any(os.path.samefile(path, kept) for kept in self._store.glob(f"*{_KEPT}")):
            os.unlink(path)

    def _renamed(self, source: Any, target: Any, *folders: int) -> None:
        if _named_by(folders):
            source, target = _absolute(source), _absolute(target)
            for path in (source, *_below(source)):
                owned = self._touch(path)
                self._touch(target + path[len(source) :], made=owned or self.training)

    def _touch(self, path: str, keep: Callable[[str, Path], None] | None = None, made: bool | None = None) -> bool:
        """What stands here is about to change or to come into being; whether it was there before the runs."""
        if self._is_ours(path) or self._is_cache(path):
            return False
        found = os.lstat(path) if os.path.lexists(path) else None
        if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return False
        owned = found is not None and found.st_ctime < self._began
        if owned or (self.training if made is None else made):
            first = self._claim(path, owned)
            if first and owned:
                (keep or _link)(path, self._note(path).with_suffix(_KEPT))
        return owned

    def _note(self, path: str) -> Path:
        """About a file that a run has touched: what it was, then the runs."""
        return self._store / hashlib.sha256(os.fsencode(path)).hexdigest()

    def _claim(self, path: str, owned: bool) -> bool:
        """Whether no run has touched this file before."""
        self._store.mkdir(parents=True, exist_ok=True)
        note = self._note(path)
        if not note.exists():
            self._borrowed.refuse(note, path)
        with suppress(FileExistsError), note.open("x") as stream:
            stream.write(f"{json.dumps({'path': path, 'owned': owned})}\n{self._run}\n")
            if owned:
                self._borrowed.enter(note)
            return True
        if self._run not in self._writers(path):
            with note.open("a") as stream:
                stream.write(f"{self._run}\n")
        return False

    def _is_ours(self, path: str) -> bool:
        return not self._ours.isdisjoint((path, *map(str, Path(path).parents)))

    def _is_cache(self, path: str) -> bool:
        """Made again at any time, and shared by more than these runs."""
        parts = Path(path.removeprefix(self._home)).parts
        return any(part in _CACHES or part.startswith("torchinductor_") for part in parts)


def _native_writers() -> Iterator[tuple[Any, str, str]]:
    """Functions that open files past Python, and the keyword of the path, their second parameter."""
    if importlib.util.find_spec("safetensors") is not None:
        importlib.import_module("safetensors")  # before its parts take the function from it
    for module, name, keyword in (
        ("torch", "save", "f"),
        ("safetensors", "serialize_file", "filename"),
        ("safetensors.torch", "serialize_file", "filename"),
    ):
        if module in sys.modules:
            yield sys.modules[module], name, keyword


def _named_by(folders: tuple[int, ...]) -> bool:
    """Whether paths stand for themselves. Those relative to open folders belong to trees that are removed, which
    was heard of as a whole."""
    return all(folder < 0 for folder in folders)


def _absolute(path: Any) -> str:
    """Without following what the path itself may link to."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder), name)


def _below(folder: str) -> list[str]:
    """Folders before what lies in them; nothing below a file."""
    return [os.path.join(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)]


def _move(path: str, kept: Path) -> None:
    """Its content is about to change."""
    try:
        os.rename(path, kept)
    except OSError:  # another file system
        shutil.copy2(path, kept)


def _link(path: str, kept: Path) -> None:
    """Only its name is about to change."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, kept, follow_symlinks=False)


def put_back(store: Path) -> None:
    """Remove what was made, inner first, and restore what was set aside. What can't go back stays in the store."""
    borrowed = Borrowed()
    notes = {note: _noted(note) for note in store.glob("?" * 64)}
    for note, (path, owned) in sorted(notes.items(), key=lambda item: (item[1][1], -len(item[1][0]))):
        try:
            if path:
                _undo(path, note.with_suffix(_KEPT) if owned else None)
            note.unlink()
            borrowed.leave(note)
        except OSError as error:
            warnings.warn(f"{path} could not be put back ({error.strerror}); see {note}", stacklevel=2)
    with suppress(OSError):
        store.rmdir()


def _noted(note: Path) -> tuple[str, bool]:
    """No path in a note whose run was killed as it wrote it, and so had changed nothing yet."""
    try:
        told = json.loads(note.read_text().splitlines()[0])
        return str(told["path"]), bool(told["owned"])
    except (ValueError, LookupError, TypeError):
        return "", False


def _undo(path: str, kept: Path | None) -> None:
    if kept is None:
        _remove(path)
    elif os.path.lexists(kept):  # else the run ended before it could
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)  # into which it would be moved
        shutil.move(kept, path)


def _remove(path: str) -> None:
    """A folder goes when it is empty."""
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            with suppress(OSError):
                os.rmdir(path)
        else:
            os.unlink(path)
