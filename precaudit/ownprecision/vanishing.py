"""Values that a script's own casts to float16 make zero, because they are smaller than it has them."""

from __future__ import annotations

from typing import Any

import torch

from precaudit.instrument.torchfunction import tensors_in
from precaudit.model import Location
from precaudit.tracing.ops import caller_location, line_of

_CASTS = frozenset("to half type type_as copy".split())


class OwnZeros:
    """Told of every operation with a low result; counts by line."""

    def __init__(self) -> None:
        self._counts: dict[Location | None, tuple[int, int]] = {}

    def made(self, op: str, args: Any, result: torch.Tensor) -> None:
        if op not in _CASTS or result.dtype != torch.float16:
            return
        for source in tensors_in(args):
            if source.dtype in (torch.float32, torch.float64) and source.shape == result.shape:
                there = int(torch.count_nonzero(source))
                place = caller_location()
                all_there, all_kept = self._counts.get(place, (0, 0))
                self._counts[place] = all_there + there, all_kept + int(torch.count_nonzero(result))

    def entries(self) -> list[dict[str, Any]]:
        """One a line, with the share that became zero of what was not."""
        return [
            {"kind": "vanished", **line_of(place), "share": 1 - kept / there}
            for place, (there, kept) in self._counts.items()
            if there > kept
        ]
