"""Reports and plans to JSON and back, key for key after the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from precaudit.errors import PrecauditError
from precaudit.formats import get_format
from precaudit.model import (
    SCHEMA_VERSION,
    Exponents,
    LayerTime,
    LossScale,
    Plan,
    Repair,
    Report,
    TensorRecord,
    TensorStats,
)
from precaudit.reporting.decode import Decoder, Decoders, Mismatch, number
from precaudit.reporting.files import read_json, write_bytes
from precaudit.reporting.json_text import dumps

KEYS: Mapping[type, Mapping[str, str]] = {
    Exponents: {"minimum": "min"},
    Repair: {"source": "from", "target": "to"},
    LayerTime: {"time": ""},
    TensorRecord: {"stats": ""},
}
# float64 reaches from 2**-1074 to 2**1023
EXPONENT_LIMIT = 1100
# what GradScaler keeps its scale in
FLOAT32 = get_format("float32")
# torch.set_float32_matmul_precision
MATMUL_PRECISIONS = ("highest", "high", "medium")


def to_json(value: Any) -> Any:
    """A JSON value: dataclasses as objects, tuples as lists, non-finite numbers as strings."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Exponents):
        return {"min": value.minimum, "counts": list(value.counts)}
    if is_dataclass(value):
        return _object(value)
    if isinstance(value, Mapping):
        return {to_json(str(key)): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(inner) for inner in value]
    return to_json(value.item()) if hasattr(value, "item") else to_json(str(value))


def _object(value: Any) -> dict[str, Any]:
    renamed = KEYS.get(type(value), {})
    result: dict[str, Any] = {}
    for f in fields(value):
        key = renamed.get(f.name, f.name)
        inner = to_json(getattr(value, f.name))
        result.update({key: inner} if key else inner)
    if isinstance(value, TensorStats):
        result["rms"] = to_json(value.rms)
    return result


def dump_report(report: Report) -> dict[str, Any]:
    """`report.json` as a mapping."""
    dumped = _object(report) | {"plan": dump_plan(report.plan)}
    first = {key: dumped[key] for key in ("schema_version", "precaudit_version")}
    return first | dumped


def dump_plan(plan: Plan) -> dict[str, Any]:
    """`plan.json` as a mapping."""
    return {"schema_version": plan.schema_version} | _object(plan)


def write_json(path: Path, value: Report | Plan | Mapping[str, Any]) -> None:
    """Write a report, a plan or a mapping as JSON, all or nothing. Reports are compact, the rest is indented."""
    if isinstance(value, Report):
        write_bytes(path, render_json(value).encode())
    else:
        write_bytes(path, indented(dump_plan(value) if isinstance(value, Plan) else to_json(value)).encode())


def indented(value: Any) -> str:
    """JSON that people read."""
    return f"{dumps(value, indented=True).decode()}\n"


def render_json(report: Report) -> str:
    """`report.json` as text, compact: histograms would fill a line for each count."""
    return f"{dumps(dump_report(report)).decode()}\n"


def render_plan(report: Report) -> str:
    """`plan.json` as text, indented: people edit plans."""
    return indented(dump_plan(report.plan))


def load_report(path: str | Path) -> Report:
    """The report in `path`; optional keys that it lacks get their defaults."""
    data = _document(Path(path), ("layers", "verification"), "a precaudit report")
    return _decode(Path(path), Report, data)


def load_plan(path: str | Path) -> Plan:
    """The plan in `path`, which is a plan.json or a report.json. People edit plans: what a misspelt key was to change
    would stay as it is, in silence."""
    data = _document(Path(path), ("default", "modules"), "a precaudit plan", inside="plan")
    return _decode(Path(path), Plan, data, strict=True)


def _document(path: Path, keys: tuple[str, ...], what: str, inside: str | None = None) -> dict[str, Any]:
    data = read_json(path)
    if inside and isinstance(data, dict) and isinstance(data.get(inside), dict):
        data = data[inside]
    if not isinstance(data, dict) or not {"schema_version", *keys} <= data.keys():
        lacks = {"schema_version", *keys} - set(data if isinstance(data, dict) else ())
        hint = " (this is a plan)" if isinstance(data, dict) and {"default", "modules"} <= data.keys() else ""
        hint = " (it has no schema_version)" if lacks == {"schema_version"} else hint
        raise PrecauditError(f"{path}: not {what}{hint}; pass a file that `precaudit profile` wrote")
    version = data["schema_version"]
    if type(version) is int and version > SCHEMA_VERSION:
        raise PrecauditError(
            f"{path}: written by a newer precaudit (schema version {version}; this one reads up to {SCHEMA_VERSION}); "
            "upgrade with `pip install -U precaudit`"
        )
    if type(version) is int and version < 1:
        raise _damaged(path, "schema_version", f"there is no version {version}")
    return data


def _damaged(path: Path, where: str, problem: str) -> PrecauditError:
    return PrecauditError(
        f"{path}: {where}: {problem}; the file was changed or damaged, or a newer precaudit wrote it: "
        "write it again with `precaudit profile`, correct that place, or upgrade with `pip install -U precaudit`"
    )


def _decode(path: Path, cls: type, data: dict[str, Any], strict: bool = False) -> Any:
    try:
        return Decoders(KEYS, SPECIAL, strict).decoder(cls)(data)
    except Mismatch as mismatch:
        raise _damaged(path, mismatch.where.lstrip(".") or "the top level", mismatch.problem) from None


# ---------------------------------------------------------------- what annotations don't say


def _exponents(decode: Decoder, value: Any) -> Exponents:
    result: Exponents = decode(value)
    if abs(result.minimum) > EXPONENT_LIMIT or len(result.counts) > 2 * EXPONENT_LIMIT:
        raise Mismatch(f"exponents beyond ±{EXPONENT_LIMIT} are no floating-point numbers")
    if any(count < 0 for count in result.counts):
        raise Mismatch("a count is negative")
    return result


def _stats(decode: Decoder, value: Any) -> TensorStats:
    """Statistics that add up; files by other writers may have `rms` alone."""
    stats: TensorStats = decode(value)
    seen = stats.exponents.total + stats.zeros + stats.nonfinite
    if seen != stats.numel or min(stats.zeros, stats.nonfinite) < 0:
        raise Mismatch(f"numel is {stats.numel}, but counts, zeros and nonfinite add up to {seen}")
    if value.get("rms") is not None and "sum_squares" not in value:
        rms = number(value["rms"])
        stats = replace(stats, sum_squares=rms * rms * (stats.numel - stats.nonfinite))
    if not (0 <= stats.amax < math.inf and 0 <= stats.amin_nonzero < math.inf and stats.sum_squares >= 0):
        raise Mismatch("amax, amin_nonzero and rms must be magnitudes of finite values")
    return stats


def _plan(decode: Decoder, value: Any) -> Plan:
    """Formats that don't exist are refused here, not while training."""
    try:
        plan: Plan = decode(value)
    except PrecauditError as error:
        raise Mismatch(str(error)) from None
    if not plan.master_weights:
        raise Mismatch("master_weights is false, but every plan trains float32 weights").inside(".master_weights")
    if plan.matmul_precision not in MATMUL_PRECISIONS:
        expected = f"expected one of {', '.join(MATMUL_PRECISIONS)}, found {plan.matmul_precision[:40]!r}"
        raise Mismatch(expected).inside(".matmul_precision")
    return plan


def _loss_scale(decode: Decoder, value: Any) -> LossScale:
    scale: LossScale = decode(value)
    if scale.init_scale is not None and not FLOAT32.smallest_subnormal <= scale.init_scale <= FLOAT32.maximum:
        raise Mismatch("a loss scale is a positive number, finite in float32").inside(".init_scale")
    if scale.growth_interval is not None and scale.growth_interval < 1:
        raise Mismatch("a growth interval is a whole number of steps, at least 1").inside(".growth_interval")
    if scale.window is not None and scale.window[0] > scale.window[1]:
        raise Mismatch("a window goes from its smallest exponent to its largest").inside(".window")
    if scale.mode == "static" and scale.init_scale is None:
        raise Mismatch("a static loss scale needs its value").inside(".init_scale")
    return scale


SPECIAL = {Exponents: _exponents, TensorStats: _stats, Plan: _plan, LossScale: _loss_scale}
