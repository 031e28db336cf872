"""Static rules: formats that the ranges and operations of one audit forbid, without another run.

Each rule is a function from an operation and a format to a ban: it must not run in that format, because ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from precaudit.formats import EXTREME, FORMATS, LOCAL_ERROR_LIMIT, Format
from precaudit.model import Location, Op, Severity
from precaudit.tracing.records import ABSORBING, STORED_ONCE, AliasedValues, Trace

HEADROOM = 4.0
"""Ranges grow in training: a value within this factor of a format's maximum is treated as too large."""
RESULT_KEPT = LOCAL_ERROR_LIMIT / 10
"""Limit for the local error in the format that an operation is moved to: just below the other limit is no
improvement."""
_MASK = "mask with torch.finfo(x.dtype).min or float('-inf'), or keep this operation in float32"
INTEGER_OPS = "positions, indices or counts"
OF_A_SUM = "the smallest number in it (an addend or the sum)"


@dataclass(frozen=True)
class Ban:
    """Module `fqn`'s operation `op` must not run in `format`, nor in those of `no_better`, which hardly improve it;
    `rule`, `why` and `fix` are for the finding; `in_place` says that the result goes into a tensor which an earlier
    operation has stored."""

    rule: str
    fqn: str
    op: str
    format: str
    severity: Severity
    why: str
    fix: str
    category: str
    location: Location | None = None
    value: float | None = None
    no_better: tuple[str, ...] = ()
    in_place: bool = False


Rule = Callable[[Op, Format], Ban | None]


def _ban(
    rule: str,
    op: Op,
    target: Format,
    severity: Severity,
    why: str,
    fix: str,
    value: float | None = None,
    measure: str = "",
) -> Ban:
    ban = Ban(rule, op.fqn, op.op, target.name, severity, why, fix, op.category, op.place(measure), value)
    return replace(ban, in_place=op.in_place)


def overflow(op: Op, target: Format) -> Ban | None:
    """PA101: the result, where autocast stores it in half, reaches the format's maximum or comes close."""
    record = op.tensor("activation")
    if record is None or not op.half:
        return None
    amax = record.stats.amax if op.half_amax is None else op.half_amax
    if amax * HEADROOM < target.maximum:
        return None
    constant = _too_large(op, target)
    masked = constant is not None and amax <= constant * (1 + 2.0**-23)  # no larger than what PA103 tells of
    if masked or (op.follows_dtype and amax >= EXTREME):
        return None
    over = amax >= target.overflow_threshold
    why = f"{op.op} reaches {amax:.3g}, " + (
        f"above {target.name}'s maximum of {target.maximum:g}"
        if over
        else f"within a factor of {target.maximum / amax:.1f} of {target.name}'s maximum {target.maximum:g}"
    )
    return _ban("PA101", op, target, "error" if over else "note", why, _wider(target), amax)


def _wider(target: Format) -> str:
    """The fix for what overflows in a format."""
    return "run it in float32" if target.name == "bfloat16" else "run it in bfloat16 or float32"


def _too_large(op: Op, target: Format) -> float | None:
    """The constant that becomes a value of the result and doesn't fit the format, if there is one."""
    constant = op.constants[1] if op.half and op.constants and op.op in _TAKING else 0.0
    return None if constant < target.overflow_threshold or constant == math.inf else constant


def operand_overflow(op: Op, target: Format) -> Ban | None:
    """PA102: a product's operand would overflow when autocast casts it to the format."""
    if op.category != "lower" or op.input_amax is None or op.input_amax * HEADROOM < target.maximum:
        return None
    over = op.input_amax >= target.overflow_threshold
    why = f"{op.op} takes inputs up to {op.input_amax:.3g}; {target.name}'s maximum is {target.maximum:g}"
    return _ban("PA102", op, target, "error" if over else "note", why, _wider(target), op.input_amax, "input")


def large_constant(op: Op, target: Format) -> Ban | None:
    """PA103: a constant such as a mask's -1e9 doesn't fit the half tensor it is written to."""
    constant = _too_large(op, target)
    if constant is None:
        return None
    why = f"{op.op} uses a constant of size {constant:.3g}, above {target.name}'s maximum of {target.maximum:g}"
    fix = _MASK if op.op in _FILLING else _wider(target)
    return _ban("PA103", op, target, "error", why, fix, constant, "largest")


def vanishing_constant(op: Op, target: Format) -> Ban | None:
    """PA104: a constant such as eps=1e-12 rounds to zero next to a half tensor, so it protects nothing."""
    if not op.half or op.constants is None or op.op not in _PROTECTED or op.constants[0] > target.flush_threshold:
        return None
    why = f"{op.op} uses a constant of size {op.constants[0]:.3g}, which is zero in {target.name}"
    fix = "use a larger eps or keep this operation in float32"
    return _ban("PA104", op, target, "warning", why, fix, measure="smallest")


def bound_of_one(op: Op, target: Format) -> Ban | None:
    """PA104: a bound such as 1 - 1e-4, which keeps values below one for a logarithm, itself rounds to one."""
    bound = op.constants[1] if op.half and op.constants and op.op in _BOUNDED else 1.0
    if target.storage_bits > 16 or not 1 - 2.0 ** -(target.precision + 1) <= bound < 1:
        return None
    why = f"{op.op} keeps values below one by a bound of {bound:.8g}, which {target.name} rounds to one"
    fix = "clamp, and do what follows (a logarithm, say), in float32, or use a lower bound"
    return _ban("PA104", op, target, "warning", why, fix, measure="largest")


_BOUNDED = frozenset("clamp clamp_max hardtanh".split())
_PROTECTED = frozenset("add sub clamp clamp_min maximum".split())
_FILLING = frozenset("masked_fill index_fill where full full_like new_full __setitem__ fill pad".split())
_TAKING = _PROTECTED | _BOUNDED | _FILLING
"""Operations whose scalar arguments become values of the result. Factors and divisors stay float32 in the kernel, and
thresholds are only compared with."""


def integers(op: Op, target: Format) -> Ban | None:
    """PA105: integer-valued inputs above 2^p, with p the format's precision, are no longer distinct."""
    limit = 2.0**target.precision
    if op.integer_amax is None or op.integer_amax <= limit:
        return None
    why = f"{op.op} takes integers up to {op.integer_amax:g}; above {limit:g} {target.name} can't hold every integer"
    return _ban("PA105", op, target, "error", why, f"compute {INTEGER_OPS} in float32", op.integer_amax, "whole")


def aliased_values(trace: Trace, aliased: Iterable[AliasedValues], harmless: Collection[str] = ()) -> tuple[Ban, ...]:
    """PA105: values that are no longer distinct because they are created in a low format. It is a warning only in a
    `harmless` format, whose gradient error is small, as where sums are divided by a count."""
    return tuple(
        Ban(
            "PA105",
            trace.name(values.model, values.fqn),
            values.op,
            values.format,
            "warning" if values.format in harmless else "error",
            f"{values.op} makes {values.wanted} values up to {values.amax:g} in {values.format}, where only "
            f"{values.kept} different ones are left",
            f"make {INTEGER_OPS} in float32 (dtype=torch.float32)",
            "other",
            values.location,
            values.amax,
        )
        for values in aliased
    )


def local_error(op: Op, target: Format) -> Ban | None:
    """PA106: the operation alone, run in the format on its real inputs, loses its result."""
    error = op.local_error.get(target.name, 0.0)
    if error < LOCAL_ERROR_LIMIT or not (op.half or op.category == "lower"):
        return None
    of = OF_A_SUM if op.op in ABSORBING else "its result"
    lost = "becomes non-finite" if error == math.inf else f"is off by {error:.0%} of {of}"
    why = f"{op.op} alone, run in {target.name}, {lost}"
    ban = _ban("PA106", op, target, "error", why, "keep this operation in float32", error, target.name)
    no_better = tuple(name for name, left in op.local_error.items() if left > RESULT_KEPT)
    return replace(ban, no_better=no_better, in_place=op.in_place and op.op not in STORED_ONCE)


def unsafe(op: Op, target: Format) -> Ban | None:
    """PA107: CUDA autocast refuses the operation."""
    if op.category != "banned" or target.storage_bits > 16:
        return None
    why = f"CUDA autocast refuses {op.op}: its gradient overflows in half precision"
    fix = "use binary_cross_entropy_with_logits, or keep this operation in float32"
    return _ban("PA107", op, target, "error", why, fix)


MAGNITUDE_RULES: tuple[Rule, ...] = (overflow, operand_overflow, large_constant, vanishing_constant, bound_of_one)
"""Rules for formats that store values unscaled. 8-bit operands are scaled by their amax, and results are bfloat16."""
RULES: tuple[Rule, ...] = (*MAGNITUDE_RULES, integers, local_error, unsafe)


def bans(trace: Trace, formats: Iterable[str]) -> tuple[Ban, ...]:
    """All bans of the static rules for the trained models, in the order of the rules."""
    trained = {layer.fqn for layer in trace.trained}
    targets = [FORMATS[name] for name in formats if name != "float32"]
    ops = [op for op in trace.ops if op.fqn in trained]
    return tuple(
        ban
        for rule in RULES
        for op in ops
        for target in targets
        if (target.storage_bits > 8 or rule not in MAGNITUDE_RULES) and (ban := rule(op, target)) is not None
    )
