from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_builder import document, op, write

from precaudit.errors import ExitCode, PrecauditError
from precaudit.tensorcores.traces import scanning
from precaudit.tensorcores.traces.scanning import TraceFile


def events_of(path):
    file = TraceFile(path)
    return [event for batch in file for event in batch], file.metadata


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(scanning, "CHUNK", 512)
    monkeypatch.setattr(scanning, "HEAD", 64)


TRICKY = [
    {"ph": "X", "name": '}, {"ph": "quoted"', "args": {"list": [{"ph": 1}, {"ph": 2}], "text": "\\\\"}},
    {"name": "}\n,\n{", "cat": "cpu_op", "args": {"nested": [[{"name": {}}, {"name": {}}]]}},
    op("aten::mm", 1, 2),
]


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_every_event_once_and_in_order(tmp_path, small_chunks, indent, name):
    events = TRICKY * 40
    path = write(tmp_path, document(events, traceName="after"), name, indent)
    found, metadata = events_of(path)
    assert found == events
    assert metadata["traceName"] == "after"
    assert metadata["deviceProperties"][0]["name"].startswith("NVIDIA")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.dictionaries(st.sampled_from(["ph", "name", "args", "}"]), json_values), max_size=30),
    st.sampled_from([16, 64, 300]),
    st.sampled_from([None, 2]),
)
def test_arbitrary_json_is_cut_between_events(tmp_path_factory, events, chunk, indent):
    path = write(tmp_path_factory.mktemp("trace"), document(events), "t.json", indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "CHUNK", chunk)
        patch.setattr(scanning, "HEAD", chunk)
        found, _ = events_of(path)
    assert found == events


def test_a_bare_list_of_events_even_without_its_end(tmp_path, small_chunks):
    events = TRICKY * 30
    text = json.dumps(events).encode()
    assert events_of(write(tmp_path, text))[0] == events
    assert events_of(write(tmp_path, text[:-1] + b","))[0] == events


def test_a_byte_order_mark_is_skipped(tmp_path, small_chunks):
    for text in (json.dumps(document(TRICKY)), json.dumps(TRICKY)):
        assert events_of(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))[0] == TRICKY


def test_invalid_json_of_profilers_is_repaired(tmp_path):
    text = b'{"traceEvents": [{"ph": "X", "name": "C:\\Users\\x\xff", "dur": nan, "args": {"a": -inf, "b": [NaN]}}]}'
    (event,), _ = events_of(write(tmp_path, text))
    assert event["dur"] is None
    assert event["args"] == {"a": None, "b": [None]}
    assert event["name"].startswith("C:\\Users\\x")


def test_paths_of_windows_may_look_like_unicode_escapes(tmp_path):
    text = rb'{"traceEvents": [{"ph": "X", "name": "D:\utils\models.py \u00e9", "dur": 1}]}'
    (event,), _ = events_of(write(tmp_path, text))
    assert event["name"] == "D:\\utils\\models.py \u00e9"


def test_lone_surrogates_are_repaired(tmp_path):
    text = rb'{"traceEvents": [{"ph": "X", "name": "a\udcffb \ud83d\ude00 \ud83d C:\\uda", "dur": 1}]}'
    (event,), _ = events_of(write(tmp_path, text))
    assert event["name"] == "a\ufffdb \U0001f600 \ufffd C:\\uda"


def test_a_chunk_in_the_middle_is_repaired(tmp_path, small_chunks):
    text = json.dumps(document(TRICKY * 40)).encode().replace(b'"dur": 2', b'"dur": inf')
    assert len(events_of(write(tmp_path, text))[0]) == 120


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_is_read_from_its_first_byte(compress):
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb") as pipe:
        pipe.write(compress(json.dumps(document(TRICKY * 40)).encode()))
        pipe.close()
        assert len(events_of(Path(f"/dev/fd/{read}"))[0]) == 120


WHOLE = json.dumps(document(TRICKY * 400), indent=1).encode()
BROKEN = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b"   \n", "empty", id="blank"),
    pytest.param(b"PK\x03\x04rest", "zip archive", id="zip"),
    pytest.param(b"\x89PNG\r\n", "not JSON", id="png"),
    pytest.param(gzip.compress(gzip.compress(b"{}")), "compressed twice", id="gzip-twice"),
    pytest.param(b"\x28\xb5\x2f\xfd\x04", "with zstd", id="zstd"),
    pytest.param(bz2.compress(b"{}"), "with bzip2", id="bzip2"),
    pytest.param(lzma.compress(b"{}"), "with xz", id="xz"),
    pytest.param("[]".encode("utf-16"), "UTF-16", id="utf-16"),
    pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", id="lfs"),
    pytest.param(b"\n<!DOCTYPE html><html>", "HTML or XML", id="html"),
    pytest.param(b"SQLite format 3\0", "Nsight Systems", id="sqlite"),
    pytest.param(b'{"kernels": 3, "b": []}', "no traceEvents .its keys: kernels, b", id="foreign"),
    pytest.param(b'{"traceEvents": {"a": 1}}', "not a list", id="object"),
    pytest.param(b'{"ph": "X", "ts": 1}\n{"ph": "X", "ts": 2}\n', "one JSON object a line", id="lines"),
    pytest.param(b'{"schemaVersion": 1, "traceEv', "not valid JSON", id="cut-in-head"),
    pytest.param(WHOLE[: len(WHOLE) // 2], r"after \d+ complete events: truncated", id="cut-in-events"),
    pytest.param(b'{"traceEvents": [', "before the first complete event", id="cut-at-start"),
    pytest.param(gzip.compress(WHOLE)[:-200], "its compression ends", id="cut-gzip"),
    pytest.param(b"\x1f\x8b" + b"nonsense" * 20, "gzip file is corrupt", id="not-gzip"),
    pytest.param(b"[" * 100_000, "nested too deeply", id="deep-list"),
    pytest.param(b'{"traceEvents": [' + b'{"a":' * 100_000, "nested too deeply", id="deep-event"),
    pytest.param(b'{"a":' * 100_000, "nested too deeply", id="deep-object"),
    pytest.param(WHOLE.replace(b'"tid"', b'"tid', 1), "truncated, corrupt", id="broken-string"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path, content, message):
    with pytest.raises(PrecauditError, match=message) as caught:
        events_of(write(tmp_path, content))
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(tmp_path) in str(caught.value)


def test_a_file_without_event_boundaries_is_rejected_at_the_limit(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(scanning, "LIMIT", 10_000)
    path = write(tmp_path, b'{"traceEvents": [{"name": "' + b"x" * 50_000)
    with pytest.raises(PrecauditError, match="no complete event in 0 MB"):
        events_of(path)
    with pytest.raises(PrecauditError, match="no traceEvents in the first"):
        events_of(write(tmp_path, b'{"other": [' + b"1," * 50_000))


@pytest.mark.parametrize("first", [{}, {"id": 7}, {"s": "t"}, {"cname": "good"}, {"bind_id": 1}, {"tts": 5}])
def test_memory_is_bounded_by_the_chunk_not_by_the_file(tmp_path, monkeypatch, first):
    monkeypatch.setattr(scanning, "CHUNK", 1 << 16)
    path = write(tmp_path, document([first | event for event in TRICKY] * 4000), indent=None)
    sizes = [len(batch) for batch in TraceFile(path)]
    assert sum(sizes) == 12_000
    assert max(sizes) < 2000
