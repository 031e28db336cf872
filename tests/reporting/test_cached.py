"""What is kept in the cache folder: made once, made again when its file is broken, and never needed."""

import os

import pytest

from precaudit.reporting.cached import cached

VALUE = {"library": "x = 1", "specs": {"a": [1, 2.5, None]}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "precaudit"


def never():
    raise AssertionError("made again")


def test_cached_value_is_made_once(folder):
    assert cached("key", lambda: VALUE) == VALUE
    assert cached("key", never) == VALUE
    assert cached("other", dict) == {}
    assert sorted(path.name for path in folder.iterdir()) == ["key.json.gz", "other.json.gz"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", "half"])
def test_a_broken_file_is_replaced(folder, damage):
    cached("key", lambda: VALUE)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-20] if damage == "half" else damage)
    assert cached("key", lambda: VALUE) == VALUE
    assert cached("key", never) == VALUE


def test_without_a_folder_it_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached("key", lambda: VALUE) == cached("key", lambda: VALUE) == VALUE
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home folder
    assert cached("key", lambda: VALUE) == VALUE


def test_failed_computation_leaves_no_file(folder):
    with pytest.raises(AssertionError):
        cached("key", never)
    assert not folder.exists()
