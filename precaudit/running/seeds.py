"""Seeds under control: paired runs see the same data, initialisation and dropout, whatever seeds a script sets.

Trial 0 keeps the script's own seeds. Every other trial folds its number into each seed that the script gives to a
global generator, so that `torch.manual_seed(0)` gives a different, repeatable stream in each trial. Generators of the
script's own (`torch.Generator`, `random.Random`) draw alike in all trials.
"""

from __future__ import annotations

import itertools
import os
import random
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from precaudit.instrument.patches import all_wrapped, ignoring_original, set_to, wrapped

_BASE_SEED = 20


def derived_seed(seed: Any, trial: int) -> int:
    """The seed a trial uses where the script asks for `seed`: repeatable, 32 bits; trial 0 keeps integers."""
    if trial == 0 and isinstance(seed, (int, np.integer)):
        return int(seed)
    return zlib.crc32(f"{seed!r}:{trial}".encode())


class _Seeding:
    """Replaces the script's seeds by the trial's. Calls that ask the system for entropy, such as `default_rng()`, get a
    new seed each time, the same sequence in each run of the trial."""

    def __init__(self, trial: int) -> None:
        self._trial = trial
        self._calls = itertools.count()

    def folded(self, function: Callable[..., Any], seed: Any = None, *args: Any, **kwargs: Any) -> Any:
        seed = kwargs.pop("a", seed)
        if isinstance(seed, (np.random.SeedSequence, np.random.BitGenerator, np.random.Generator)):
            return function(seed, *args, **kwargs)
        asked = self._unseeded() if seed is None else seed
        return function(derived_seed(asked, self._trial), *args, **kwargs)

    def fresh(self) -> int:
        """Replaces `torch.seed()`, which takes its seed from the system."""
        torch.manual_seed(self._unseeded())
        return torch.initial_seed()

    def _unseeded(self) -> str:
        worker = torch.utils.data.get_worker_info()
        return f"{_BASE_SEED}:{next(self._calls)}" + (f":{worker.seed}" if worker else "")


@contextmanager
def controlled_seeds(trial: int) -> Iterator[None]:
    """Seed `random`, numpy and torch, and replace the seeds that the script sets in this block."""
    seeding = _Seeding(trial)
    start = derived_seed(_BASE_SEED, trial)
    random.seed(start)
    np.random.seed(start)
    torch.manual_seed(start)
    with all_wrapped(
        (random, "seed", seeding.folded),
        (np.random, "seed", seeding.folded),
        (np.random, "default_rng", seeding.folded),
        (torch, "manual_seed", seeding.folded),
        (torch.random, "manual_seed", seeding.folded),
        (torch.cuda, "manual_seed", seeding.folded),
        (torch.cuda, "manual_seed_all", seeding.folded),
        (torch, "seed", ignoring_original(seeding.fresh)),
        (torch.random, "seed", ignoring_original(seeding.fresh)),
    ):
        yield


@contextmanager
def repeatable_algorithms() -> Iterator[None]:
    """Use CUDA's deterministic algorithms where they exist: without them two runs of one seed differ by as much as a
    change of precision does. The script can't enable cudnn.benchmark in this block."""
    if not torch.cuda.device_count():  # does not initialize CUDA: the script may still choose its GPUs
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = {"CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")}
    with warnings.catch_warnings(), mock.patch.dict(os.environ, workspace), ExitStack() as stack:
        warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
        stack.enter_context(set_to(torch.utils.deterministic, "fill_uninitialized_memory", False))
        stack.enter_context(set_to(torch.backends.cudnn, "benchmark", False))
        flag = vars(type(torch.backends.cudnn))["benchmark"]
        stack.enter_context(wrapped(flag, "setter", lambda *values: None))
        yield
