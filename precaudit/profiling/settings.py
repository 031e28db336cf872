"""What a profile was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precaudit.errors import PrecauditError
from precaudit.tensorcores.peaks import get_gpu

DEFAULT_STEPS = 60
DEFAULT_SEEDS = 3


@dataclass(frozen=True)
class Settings:
    """Options of `precaudit profile`, validated on construction; `formats` empty means: what suits the target."""

    steps: int = DEFAULT_STEPS
    seeds: int = DEFAULT_SEEDS
    target: str | None = None
    formats: tuple[str, ...] = ()
    execution: Literal["auto", "native", "emulated"] = "auto"
    quick: bool = False
    verify: bool = True
    device: str | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PrecauditError(f"--steps must be at least 1, not {self.steps}")
        if self.seeds < 1:
            raise PrecauditError(f"--seeds must be at least 1, not {self.seeds}")
        if self.price is not None and not self.price >= 0:
            raise PrecauditError(f"--price must be a number of dollars per hour, not {self.price}")
        if self.target is not None:
            get_gpu(self.target)
