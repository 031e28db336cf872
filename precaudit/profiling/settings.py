"""The options of a profile."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from precaudit.errors import require, require_count
from precaudit.hardware.peaks import get_gpu
from precaudit.model import EXECUTIONS, ExecutionOption

DEFAULT_STEPS = 60
DEFAULT_SEEDS = 3
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu)(:\d+)?")
OPTIONS = ("steps", "seeds", "target", "formats", "execution", "device", "price")


@dataclass(frozen=True)
class Settings:
    """Options of `precaudit profile`, validated on construction; `formats` empty means: what suits the target."""

    steps: int = DEFAULT_STEPS
    seeds: int = DEFAULT_SEEDS
    target: str | None = None
    formats: tuple[str, ...] = ()
    execution: ExecutionOption = "auto"
    quick: bool = False
    verify: bool = True
    device: str | None = None
    price: float | None = None

    def options(self) -> dict[str, str]:
        """The options for another command line with the same settings, except defaults."""
        chosen = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) != getattr(Settings, name)}
        return {f"--{name}": ",".join(v) if isinstance(v, tuple) else f"{v}" for name, v in chosen.items()}

    @property
    def pairs(self) -> int:
        """How many seeds the first look uses."""
        return 0 if not self.verify else 1 if self.quick else self.seeds

    @property
    def unheeded(self) -> str | None:
        """Notes on options that are ignored in favour of others."""
        asked = [f"--seeds {self.seeds}"] if self.seeds not in (self.pairs, DEFAULT_SEEDS) else []
        asked += ["--quick"] if self.quick and not self.verify else []
        instead = "--quick runs one pair" if self.verify else "--no-verify runs no pair"
        return f"{instead}: {' and '.join(asked)} changed nothing" if asked else None

    def __post_init__(self) -> None:
        require_count("--steps", self.steps)
        require_count("--seeds", self.seeds)
        wanted = f"--execution must be one of {', '.join(EXECUTIONS)}, not {self.execution!r}"
        require(self.execution in EXECUTIONS, wanted)
        if self.price is not None:
            fits = isinstance(self.price, int | float) and 0 <= self.price < math.inf
            require(fits, f"--price must be a number of dollars per hour, not {self.price!r}")
        if self.device is not None:
            known = isinstance(self.device, str) and _DEVICE.fullmatch(self.device) is not None
            require(known, f"--device must be cpu, cuda, cuda:1 or the like, not {self.device!r}")
        if self.target is not None:
            require(isinstance(self.target, str), f"--target must be the name of a GPU, not {self.target!r}")
            get_gpu(self.target)
