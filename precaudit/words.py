"""How values and names read: the same words in every renderer. Names come from scripts and are never trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any, TypeGuard

NOT_MEASURED = "not measured"
TORCHRUN = "torchrun --nproc_per_node 1 -m precaudit"
UNDER_TORCHRUN = f"{TORCHRUN} profile SCRIPT"
NOT_NATIVE = (
    "--execution native needs a model on a CUDA device, because the CPU's autocast rounds at other places; "
    "use --execution emulated"
)
MOST_DECIMALS = 12
SHORT_FORMATS: Mapping[str, str] = {
    "float32": "fp32",
    "tf32": "tf32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8_e4m3": "e4m3",
    "float8_e5m2": "e5m2",
}


def visible(text: object) -> str:
    """One line without control, bidirectional or other invisible characters: those become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def prose(text: object) -> str:
    """A message as one visible line; its own line breaks are spaces."""
    return visible(" ".join(str(text).split()))


def inert(text: str) -> str:
    """Text for a log that CI hosts read for commands: `::error ...` and `##[...]` inside it are only text.

    The first is a command at the start of a line only, and so wherever a line may be broken; the other one anywhere.
    """
    commands = r"(?<!\S):(?=:[A-Za-z-]+(?:::|\s))|#(?=#\w*\[)"
    return re.sub(commands, lambda match: f"\\x{ord(match[0]):02x}", text)


def capitalized(text: str) -> str:
    """The text with a capital first letter; the others stay as they are, unlike in `str.capitalize`."""
    return f"{text[:1].upper()}{text[1:]}"


def shorten(text: str, width: int) -> str:
    """Cut in the middle: both ends of a fully qualified name tell layers apart."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def shared_start(rows: Iterable[Sequence[str]]) -> list[str]:
    """What all rows begin with, such as the parts of names."""
    return [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*rows, strict=False))]


def fitted(names: Sequence[str], width: int) -> list[str]:
    """Names, the long ones without the parts that all of them begin with, and with their longest parts cut: what tells
    them apart is often a number in their middle."""
    long = [name.split(".") for name in names if len(name) > width]
    shared = len(shared_start([parts[:-1] for parts in long])) if len(long) > 1 else 0
    return [name if len(name) <= width else _with_parts_cut(name, width, shared) for name in names]


def _with_parts_cut(name: str, width: int, shared: int) -> str:
    parts = name.split(".")[shared:]
    parts[0] = f"…{parts[0]}" if shared else parts[0]
    room = width - len(parts) + 1
    most = next((n for n in range(width, 3, -1) if sum(min(len(part), n) for part in parts) <= room), 3)
    return shorten(".".join(shorten(part, most) for part in parts), width)


def broken(name: str, width: int, most: int) -> list[str]:
    """A name in at most `most` lines, broken after its spaces, and after the dots and colons of its long words, where
    these are enough."""
    lines = [""]
    words = re.findall(r"[^ ]* |[^ ]+", name)
    for part in chain.from_iterable([w] if len(w) <= width else re.findall(r"[^.:]*[.:]|[^.:]+", w) for w in words):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += shorten(part, width)
    if len(lines) <= most:
        return lines
    text = shorten(name, most * width)
    return [text[start : start + width] for start in range(0, len(text), width)]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a report is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, unit: str = "") -> str:
    """Three significant digits; unmeasured is said, never 0; what is no number is shown as it is."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, int | float):
        return prose(value)
    return f"{_three(value)} {unit}".rstrip()


def _three(value: float) -> str:
    """Three significant digits, or all before the point, without an exponent below a million."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def usd(value: Any) -> str:
    """Three significant digits, no fewer than two decimals, and no exponent: `0.0000435 USD`."""
    if not is_number(value):
        return number(value, "USD")
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 2
    whole, _, part = f"{value:,.{min(max(2, decimals), MOST_DECIMALS)}f}".partition(".")
    return f"{whole}.{part.rstrip('0'):0<2} USD"


def seconds(value: Any) -> str:
    if not is_number(value):
        return number(value)
    if value < 1:
        return f"{_three(1000 * value)} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def size(value: Any) -> str:
    """Bytes, in the binary unit that leaves one to four digits."""
    if not is_number(value):
        return number(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{_three(value)} {unit}"


def share(value: float | None) -> str:
    """A share as a percentage that never rounds to none or to all."""
    if value is None:
        return NOT_MEASURED
    if value in (0, 1):
        return f"{value:.0%}"
    if value < 0.0001:
        return "<0.01%"
    if value > 0.999:
        return ">99.9%"
    return f"{value:.2%}" if value < 0.01 else f"{value:.1%}"


def signed(value: float | None) -> str:
    """A relative difference in per cent, with its sign."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:+.2%}"
    return "±0.00%" if text.strip("+-") == "0.00%" else text


def power(value: float | None) -> str:
    """A scale as a power of two where it is one."""
    if value is None:
        return NOT_MEASURED
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1} = {value:,.0f}" if mantissa == 0.5 and value >= 1 else f"{value:g}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(names: Iterable[str], most: int = 4, separator: str = ", ", show: Callable[[str], str] = visible) -> str:
    """`a, b, c and 12 more`, each name as `show` has it."""
    every = list(names)
    if len(every) <= most:
        return separator.join(map(show, every))
    return f"{separator.join(map(show, every[: most - 1]))} and {len(every) - most + 1:,} more"
