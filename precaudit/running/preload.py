"""Imports of the fork server, which all runs share.

Nothing here may start a thread: a fork copies only the calling thread.
"""

import os
from contextlib import suppress
from importlib import import_module

try:
    import torch
except (OSError, MemoryError) as error:
    raise ImportError(error) from error  # the server ignores ImportError; the parent process reports why

from precaudit.histograms import observe
from precaudit.running.sources import SHARED_IMPORTS

# The first optimizer of any script imports torch._dynamo, which takes as long as torch itself.
MODULES = ("torch._dynamo", "torch.utils.data", "precaudit.running.script", "precaudit.running.worker")


def load_kernels() -> None:
    """Compile the CPU kernels, or load them from the cache."""
    observe(torch.zeros(1))


def compile_in_child() -> int:
    """Compile the kernels in a child process, for numba's cache: the memory that the compiler allocates would otherwise
    count as every run's, on the first profile after an installation."""
    child = os.fork()
    if child == 0:
        try:
            load_kernels()
        finally:
            os._exit(0)
    return child


compiler = compile_in_child()
for name in MODULES:
    import_module(name)
with suppress(ChildProcessError):  # where SIGCHLD is ignored
    os.waitpid(compiler, 0)
load_kernels()
for name in os.environ.pop(SHARED_IMPORTS, "").split():
    with suppress(Exception):  # the script meets it too, and fails or does without
        import_module(name)
