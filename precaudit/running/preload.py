"""What the fork server imports once, so that every run starts with it.

Nothing here may start a thread: a fork copies only the thread that calls it.
"""

import os
from contextlib import suppress
from importlib import import_module

try:
    import torch
except (OSError, MemoryError) as error:
    raise ImportError(error) from error  # the server goes on without; the process that asked for it tells why

from precaudit.histograms import observe

# The first optimizer of any script imports torch._dynamo, which takes as long as torch itself.
MODULES = ("torch._dynamo", "torch.utils.data", "precaudit.running.script", "precaudit.running.worker")


def load_kernels() -> None:
    observe(torch.zeros(1))


def compile_apart() -> int:
    """A child compiles the kernels where numba's cache doesn't have them yet, and is over: what a compiler allocates
    here would count as memory of every run, on the first profile after an installation alone."""
    child = os.fork()
    if child == 0:
        try:
            load_kernels()
        finally:
            os._exit(0)
    return child


compiler = compile_apart()
for name in MODULES:
    import_module(name)
with suppress(ChildProcessError):  # where the parent of all ignores what becomes of children
    os.waitpid(compiler, 0)
load_kernels()
