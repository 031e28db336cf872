"""The folder for gradients, and those that killed profiles have left."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from precaudit.running.scratch import scratch

PROFILE = """
import os, signal
from precaudit.running.scratch import scratch
with scratch() as folder:
    open(os.path.join(folder, "1.pt"), "w").close()
    print(folder, flush=True)
    signal.pause()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder):
    old = time.time() - 3600
    os.utime(folder, (old, old))


def test_the_folder_of_a_killed_process_is_removed_by_the_next(temporary):
    with subprocess.Popen(
        [sys.executable, "-c", PROFILE], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    ) as other:
        left = Path(other.stdout.readline().strip())
        aged(left)
        with scratch():
            assert left.exists(), "its process lives"
        other.send_signal(signal.SIGKILL)
    assert left.exists()
    with scratch():
        assert not left.exists()


def test_a_folder_that_may_not_be_locked_yet_is_left_alone(temporary):
    young = Path(tempfile.mkdtemp(prefix="precaudit-gradients-"))
    with scratch():
        assert young.exists()
    aged(young)
    with scratch():
        assert not young.exists()


def test_what_is_not_gradients_is_left_alone(temporary):
    """`precaudit check` keeps files of the user's there that it could not put back."""
    kept = Path(tempfile.mkdtemp(prefix="precaudit-"))
    aged(kept)
    with scratch() as folder:
        assert Path(folder).parent == temporary
    assert list(temporary.iterdir()) == [kept]


def test_two_have_folders_of_their_own_and_leave_none(temporary):
    with scratch() as one, scratch() as other:
        aged(one)
        with scratch():
            assert len({one, other, *map(str, temporary.iterdir())}) == 3
    assert list(temporary.iterdir()) == []
