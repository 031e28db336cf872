"""Seeds under control: paired runs see the same data, initialisation and dropout, whatever seeds a script sets.

Trial 0 keeps the script's own seeds. Every other trial folds its number into each seed that the script sets
itself, so that `torch.manual_seed(0)` gives a different, repeatable stream in each trial.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

_BASE_SEED = 20


def derived_seed(seed: Any, trial: int) -> int:
    """The seed a trial uses where the script asks for `seed`: repeatable, 32 bits; trial 0 keeps integers."""
    if trial == 0 and isinstance(seed, (int, np.integer)):
        return int(seed)
    return zlib.crc32(f"{seed!r}:{trial}".encode())


@contextmanager
def controlled_seeds(trial: int) -> Iterator[None]:
    """Seeds `random`, numpy and torch, and redirects the script's own seeding until the block ends."""

    def folded(function: Callable[..., Any]) -> Callable[..., Any]:
        def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
            seed = kwargs.pop("a", seed)
            if isinstance(seed, (np.random.SeedSequence, np.random.BitGenerator, np.random.Generator)):
                return function(seed, *args, **kwargs)
            return function(derived_seed(_BASE_SEED if seed is None else seed, trial), *args, **kwargs)

        return seeded

    def fresh() -> int:
        """`torch.seed()`, which asks the machine for a number that no other run would have."""
        torch.manual_seed(_BASE_SEED)
        return torch.initial_seed()

    start = derived_seed(_BASE_SEED, trial)
    random.seed(start)
    np.random.seed(start % 2**32)
    torch.manual_seed(start)
    with ExitStack() as stack:
        for owner, name in (
            (random, "seed"),
            (np.random, "seed"),
            (np.random, "default_rng"),
            (torch, "manual_seed"),
            (torch.random, "manual_seed"),
            (torch.cuda, "manual_seed"),
            (torch.cuda, "manual_seed_all"),
        ):
            stack.enter_context(mock.patch.object(owner, name, folded(getattr(owner, name))))
        for owner in (torch, torch.random):
            stack.enter_context(mock.patch.object(owner, "seed", fresh))
        yield
