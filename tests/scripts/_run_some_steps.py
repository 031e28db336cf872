"""Run ordinary training scripts for a few steps, each in a forked child with torch imported already.

Reads one JSON request a line from stdin, `{"argv": ["gan.py"], "steps": 4, "unit": "step", "cwd": "/tmp/x"}`, where
`argv` is what would follow `python` (`["-m", "pkg"]` too) and `unit` says what counts: "step" (of a torch optimizer)
or "backward". Writes one JSON answer a line: how the script ended and what it did. The scripts know nothing of this.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # every torch optimizer imports it at its first use
from torch.optim.optimizer import register_optimizer_step_post_hook

LIMIT_S = 120


class EnoughSteps(BaseException):
    """Not an Exception, so that only a bare `except` of the script could swallow it."""


class Recorder:
    """Appends an event a line to a file, which outlives the script however it ends."""

    def __init__(self, path: Path, unit: str, steps: int) -> None:
        self.file = path.open("a", buffering=1)
        self.unit, self.steps, self.seen = unit, steps, 0
        self.plain_backward = torch.autograd.backward

    def write(self, event: str, value: float = math.nan) -> None:
        print(event, value, file=self.file)
        self.seen += event == self.unit
        if event == self.unit and self.seen >= self.steps:
            raise EnoughSteps

    def install(self) -> None:
        register_optimizer_step_post_hook(lambda *_: self.write("step"))
        torch.autograd.backward = self.backward

    def backward(self, tensors, *arguments, **options) -> None:
        self.plain_backward(tensors, *arguments, **options)
        root = tensors if isinstance(tensors, torch.Tensor) else tensors[0]
        self.write("backward", root.detach().double().mean().item())


def run_script(argv: list[str]) -> None:
    """As `python ARGV` would, as far as a script can tell."""
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], os.getcwd()
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).resolve().parent)
        runpy.run_path(argv[0], run_name="__main__")


def child(request: dict, folder: Path) -> None:
    """Becomes the script: whatever it raises leaves this process as it would leave Python."""
    signal.alarm(LIMIT_S)
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    recorder = Recorder(folder / "events", request["unit"], request["steps"])
    recorder.install()
    try:
        run_script(request["argv"])
    except EnoughSteps:
        recorder.write("stopped")
    sys.exit()


def answer(status: int, folder: Path, seconds: float) -> dict:
    lines = (folder / "events").read_text().splitlines() if (folder / "events").exists() else []
    events = [(name, float(value)) for name, value in map(str.split, lines)]
    names = [name for name, _ in events]
    output = (folder / "output").read_bytes()
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "stopped": "stopped" in names,
        "steps": names.count("step"),
        "backwards": names.count("backward"),
        "losses": [value for name, value in events if name == "backward"],
        "output": output[-8000:].decode(errors="replace"),
        "output_bytes": len(output),
        "seconds": seconds,
    }


def preload() -> None:
    """What most scripts import, so that their children needn't."""
    torch.set_num_threads(1)
    for module in ("sklearn.datasets", "sklearn.model_selection"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else every child copies and tears down all of torch when it exits, which takes over a second


def main() -> None:
    preload()
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(tempfile.mkdtemp())  # not a context manager: the child leaves by unwinding, too
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            child(request, folder)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(answer(status, folder, time.perf_counter() - start)), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
