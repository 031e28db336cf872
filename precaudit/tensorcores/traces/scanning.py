"""Reading a Chrome trace event by event batch, in memory that does not grow with the file.

The array of events is cut where one event ends and the next begins. A cut is right exactly when everything before
it parses as a JSON array, so a guess needs no scanner of strings and braces: a wrong one fails and another is tried.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from precaudit.errors import PrecauditError
from precaudit.reporting.json_text import loads

CHUNK = 1 << 20
HEAD = 1 << 16
LIMIT = 256 << 20
BOM = b"\xef\xbb\xbf"
_CUTS_TRIED = 4
_KEY = re.compile(rb'"traceEvents"\s*:\s*\[')
# With any key of the Trace Event Format first: writers order them as they like.
_EVENT_START = re.compile(rb'\s*\{\s*"(?:ph|name|cat|pid|tid|t?ts|t?dur|args|bp|id2?|bind_id|scope|s|sf|stack|cname)"')
_JSON_ERRORS = (ValueError, RecursionError)


class TraceFile:
    """Iterates over batches of events. Afterwards `metadata` holds the keys beside `traceEvents`, and `unended` says
    that a bare list of events lacks its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.events = 0
        self.unended = False
        self._is_list = False

    def __iter__(self) -> Iterator[list[Any]]:
        try:
            with _opened(self.path) as stream:
                for batch in self._batches(stream):
                    self.events += len(batch)
                    yield batch
        except EOFError:
            raise self._error(f"the file is truncated: its compression ends after {self.events} events") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._error(f"the gzip file is corrupt ({error})") from None
        except OSError as error:
            raise self._error(f"can't read it: {error.strerror or error}") from None

    def _batches(self, stream: BinaryIO) -> Iterator[list[Any]]:
        buffer = self._head(stream)
        size = CHUNK
        while len(block := stream.read(size)) == size:
            buffer += block
            cut, events = _complete_events(buffer)
            if cut:
                yield events
                buffer, size = buffer[cut + 1 :], CHUNK
            elif len(buffer) > LIMIT:
                raise self._error(
                    f"no complete event in {LIMIT >> 20} MB after event {self.events}: corrupt or foreign"
                )
            else:
                size *= 2
        yield self._tail(buffer + block)

    def _head(self, stream: BinaryIO) -> bytes:
        """Read up to the first event; the bytes read beyond that point are returned."""
        buffer, size = b"", HEAD
        while block := stream.read(size):
            buffer, size = (buffer + block).removeprefix(BOM), 4 * size
            text = buffer.lstrip()
            if text.startswith(b"["):
                self._is_list = True
                return text[1:]
            if text and not text.startswith(b"{"):
                if container := next((what for magic, what in _CONTAINERS if text.startswith(magic)), None):
                    raise PrecauditError(f"{self.path}: {container}")
                raise self._error("not JSON: a torch.profiler trace starts with { or [")
            for key in _KEY.finditer(buffer):
                head = _parse(buffer[: key.end()] + b"]}")
                if isinstance(head, dict):
                    self._note(head)
                    return buffer[key.end() :]
            if len(buffer) > LIMIT:
                raise self._error(f"no traceEvents in the first {LIMIT >> 20} MB: not a torch.profiler trace")
        raise self._error(_foreign(buffer))

    def _tail(self, buffer: bytes) -> list[Any]:
        head = b"[" if self._is_list else b'{"traceEvents":['
        document = _parse(head + buffer)
        if document is None and self._is_list:
            document = _parse(head + buffer.rstrip().rstrip(b",") + b"]")  # the format allows the end to be missing
            self.unended = True
        if document is None:
            _, events = _complete_events(buffer, cuts=64)
            complete = self.events + len(events)
            where = f"after {complete} complete events" if complete else "before the first complete event"
            raise self._error(f"the JSON ends or breaks {where}: truncated, corrupt or nested too deeply")
        if isinstance(document, dict):
            events = document["traceEvents"]
            self._note(document)
            return events if isinstance(events, list) else []
        return cast(list[Any], document)

    def _note(self, part: dict[str, Any]) -> None:
        self.metadata.update({key: value for key, value in part.items() if key != "traceEvents"})

    def _error(self, what: str) -> PrecauditError:
        return PrecauditError(f"{self.path}: {what}. Export the trace again with prof.export_chrome_trace(path)")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Its text without compression. What is looked at stays to be read: a pipe can be opened only once."""
    with path.open("rb") as file:
        compressed = file.peek(2).startswith(b"\x1f\x8b")
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file


def _parse(text: bytes) -> Any:
    """The JSON value, or None; profilers write bare nan and inf, which JSON does not have, so those are mended."""
    try:
        return loads(text)
    except _JSON_ERRORS:
        pass
    try:
        return loads(_mend(text))
    except _JSON_ERRORS:
        return None


_NOT_A_NUMBER = re.compile(rb"(?<=[:\[,\s])-?(?:nan|inf(?:inity)?)(?=\s*[,}\]])", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb'(?<!\\)((?:\\\\)*)\\(?!["\\/bfnrt]|u[\da-fA-F]{4})')
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_HALF_PAIR = re.compile(  # as scripts write them that carry bytes through Python's surrogateescape
    rb"(?i)\\ud[89ab][\da-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][\da-f]{2})\\ud[c-f][\da-f]{2}"
)


def _mend(text: bytes) -> bytes:
    text = _CONTROL.sub(b" ", _NOT_A_NUMBER.sub(b"null", text))
    text = _HALF_PAIR.sub(rb"\\ufffd", _BAD_ESCAPE.sub(rb"\1\\\\", text))
    return text.decode("utf-8", "replace").encode()


def _complete_events(buffer: bytes, cuts: int = _CUTS_TRIED) -> tuple[int, list[Any]]:
    """The events up to the last cut that parses, and where that cut is: (0, []) when there is none."""
    for cut in islice(_cuts(buffer), cuts):
        try:
            return cut, loads(b"[%b]" % buffer[:cut])
        except _JSON_ERRORS:
            continue
    first = next(_cuts(buffer), 0)
    events = _parse(b"[%b]" % buffer[:first]) if first else None
    return (first, events) if isinstance(events, list) else (0, [])


def _cuts(buffer: bytes) -> Iterator[int]:
    """Positions of the commas that look like standing between two events, last first."""
    end = len(buffer)
    while (at := buffer.rfind(b"},", 0, end)) >= 0:
        if _EVENT_START.match(buffer, at + 2):
            yield at + 1
        end = at + 1


# How files begin that a trace may have been turned into since it was written.
_CONTAINERS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "it is compressed twice: unpack it once"),
    (b"PK", "it is a zip archive: unpack it and pass the JSON file inside"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it, or compress it with gzip"),
    (b"BZh", "it is compressed with bzip2: unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "it is compressed with xz: unpack it, or compress it with gzip"),
    (b"\xff\xfe", "it is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16 text: save it as UTF-8"),
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<", "it is HTML or XML, maybe the page that leads to the trace: download the file itself"),
    (b"SQLite format 3", "it is a database, as Nsight Systems exports: torch.profiler's own trace is needed"),
)


def _foreign(buffer: bytes) -> str:
    if not buffer.strip():
        return "the file is empty"
    document = _parse(buffer)
    if not isinstance(document, dict):
        if isinstance(_parse(buffer.partition(b"\n")[0]), dict):
            return "it has one JSON object a line, as torch.profiler doesn't write"
        return "not valid JSON: truncated, corrupt or nested too deeply"
    if "traceEvents" in document:
        return "its traceEvents is not a list: not a torch.profiler trace"
    keys = ", ".join(list(map(str, document))[:5]) or "none"
    return f"not a torch.profiler trace: it has no traceEvents (its keys: {keys})"
