"""What a command prints to may end before it does: that costs what is printed, and nothing else."""

import io
import subprocess
import sys

import pytest

from precaudit.commands.streams import emit
from precaudit.errors import PrecauditError

PROGRAM = """
import sys
from precaudit.commands.streams import emit, robust_streams
with robust_streams():
    print("progress " * 20_000, file=sys.stderr, flush=True)
    emit("result " * 20_000, sys.stdout)
    print("more", file=sys.stderr)
    open("written", "w").close()
sys.exit(1)
"""


def run(folder, redirections):
    shell = f'exec "$0" -c "$1" {redirections}'
    return subprocess.run(["bash", "-c", shell, sys.executable, PROGRAM], cwd=folder, capture_output=True).returncode


@pytest.mark.parametrize(
    "redirections", ["> >(true)", "2> >(true)", "> >(head -c 9) 2>&1", ">&- 2>&- <&-", "2>/dev/full"]
)
def test_the_work_and_the_exit_code_outlast_the_streams(redirections, tmp_path):
    assert run(tmp_path, redirections) == 1
    assert (tmp_path / "written").exists()


def test_a_full_disk_is_told():
    with open("/dev/full", "w", encoding="utf-8") as stream, pytest.raises(PrecauditError, match="No space left"):
        emit("result", stream)


def test_a_stream_that_knows_ascii_only():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    emit("within ±0.25% … 2 → 3 ██ 😀 é done", stream)
    assert stream.buffer.getvalue() == b"within +-0.25% ~ 2 -> 3 ## ? ? done\n"
