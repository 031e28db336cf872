"""Number formats: one frozen dataclass each, with every range derived from its bit layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precaudit.errors import PrecauditError

LOCAL_ERROR_LIMIT = 0.25
"""An operation with a relative rms error of a quarter has lost its result, in any format; rounding causes
2^-mantissa."""
ROUNDINGS = 16
"""Limit for outputs, in units of roundoff. A rounding has an rms error of a third of a unit, and independent ones add
up by the square root of their number: two thousand in a row would reach the limit."""


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    `mantissa` counts the stored fraction bits, `exponent_min` and `exponent_max` are the exponents
    of the smallest and the largest normal binade, `maximum` is the largest finite value, and
    `storage_bits` is the width of a stored value (tf32 lives in 32-bit words).
    """

    name: str
    mantissa: int
    exponent_min: int
    exponent_max: int
    maximum: float
    storage_bits: int

    @property
    def precision(self) -> int:
        """Significant bits, the implicit one included: integers up to 2**precision are exact."""
        return self.mantissa + 1

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value."""
        return 2.0**-self.mantissa

    @property
    def tolerance(self) -> float:
        """The relative rms error allowed in outputs if this is the coarsest format in use."""
        return min(LOCAL_ERROR_LIMIT, ROUNDINGS * self.epsilon / 2)

    @property
    def smallest_normal(self) -> float:
        return 2.0**self.exponent_min

    @property
    def smallest_subnormal(self) -> float:
        return 2.0 ** (self.exponent_min - self.mantissa)

    @property
    def flush_threshold(self) -> float:
        """Largest magnitude that rounds to zero: half the smallest subnormal, ties going to even."""
        return self.smallest_subnormal / 2

    @property
    def overflow_threshold(self) -> float:
        """The midpoint between `maximum` and the next value, were there one: all above it rounds past `maximum`.

        The midpoint itself does so where the maximum's last bit is odd, for ties go to even. That is everywhere but in
        float8_e4m3, where 464 still rounds to 448.
        """
        return self.maximum + 2.0 ** (self.exponent_max - self.mantissa) / 2


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("float32", 23, -126, 127, (2 - 2.0**-23) * 2.0**127, 32),
        Format("tf32", 10, -126, 127, (2 - 2.0**-10) * 2.0**127, 32),
        Format("bfloat16", 7, -126, 127, (2 - 2.0**-7) * 2.0**127, 16),
        Format("float16", 10, -14, 15, 65504.0, 16),
        Format("float8_e4m3", 3, -6, 8, 448.0, 8),
        Format("float8_e5m2", 2, -14, 15, 57344.0, 8),
    )
}

NARROW_FORMATS = tuple(name for name, each in FORMATS.items() if each.storage_bits < 32)
HALF_FORMATS = tuple(name for name, each in FORMATS.items() if each.storage_bits == 16)

EXTREME = FORMATS["float32"].maximum / 16
"""Numbers from here on are taken for (a share of) float32's largest, as in masks with `torch.finfo(x.dtype).min`."""

ALIASES: Mapping[str, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8": "float8_e4m3",
    "float8": "float8_e4m3",
    "e4m3": "float8_e4m3",
    "e5m2": "float8_e5m2",
}


DEFAULT_FORMATS = ("bfloat16", "float16", "tf32")
"""The formats of a plan if none are requested."""


def get_format(name: str) -> Format:
    """The format called `name` (contract names and the usual short ones); `PrecauditError` if unknown."""
    canonical = ALIASES.get(name.lower(), name.lower())
    if canonical not in FORMATS:
        known = ", ".join([*FORMATS, *ALIASES])
        raise PrecauditError(f"unknown number format {name!r}; known formats: {known}")
    return FORMATS[canonical]


def parse_formats(text: str) -> tuple[str, ...]:
    """Contract names from a comma-separated list such as `bf16,fp16`; duplicates are dropped."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise PrecauditError("no number format given; try --formats bf16,fp16")
    return tuple(dict.fromkeys(get_format(name).name for name in names))
