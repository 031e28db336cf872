"""What the fork server imports once, so that every run starts with it.

Nothing here may start a thread: a fork copies only the thread that calls it.
"""

from importlib import import_module

try:
    import torch
except (OSError, MemoryError) as error:
    raise ImportError(error) from error  # the server goes on without; the process that asked for it tells why

from precaudit.histograms import observe

# The first optimizer of any script imports torch._dynamo, which takes as long as torch itself.
MODULES = ("torch._dynamo", "torch.utils.data", "precaudit.running.script", "precaudit.running.worker")

for name in MODULES:
    import_module(name)
observe(torch.zeros(1))  # loads the compiled kernels
