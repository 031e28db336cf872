"""Tables of a report as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from precaudit.errors import PrecauditError
from precaudit.model import Finding, Layer, Op, Report, TensorRecord

if TYPE_CHECKING:
    import pandas

STATISTICS = ["role", "name", "dtype", "numel", "amax", "amin_nonzero", "rms", "zeros", "nonfinite"]
COLUMNS = {
    "layers": ["model", "fqn", "type", "format", "parameters", "calls", *STATISTICS],
    "ops": ["fqn", "op", "category", "calls", "location", "input_amax", "flops", *STATISTICS],
    "findings": ["rule", "severity", "fqn", "op", "path", "line", "message", "suggestion"],
}


def frame(report: Report, table: str) -> pandas.DataFrame:
    """A row per layer and role, per op and role, or per finding; the columns are there in an empty table too."""
    import pandas

    if table not in COLUMNS:
        raise PrecauditError(f"no table {table!r} in a report; there are {', '.join(COLUMNS)}")
    rows = list(_rows(report, table))
    columns = dict.fromkeys(COLUMNS[table]) | dict.fromkeys(key for row in rows for key in row)
    return pandas.DataFrame(rows, columns=list(columns))


def _rows(report: Report, table: str) -> Iterator[dict[str, Any]]:
    if table == "findings":
        yield from map(_finding, report.findings)
    elif table == "layers":
        for layer in report.layers:
            yield from (_layer(layer, report) | _tensor(tensor) for tensor in layer.tensors)
    else:
        for op in report.ops:
            yield from (_op(op) | _tensor(tensor) for tensor in op.tensors)


def _tensor(tensor: TensorRecord) -> dict[str, Any]:
    stats = tensor.stats
    occupied = [exponent for exponent, _ in stats.exponents.items()]
    row: dict[str, Any] = {key: getattr(stats, key, None) for key in STATISTICS}
    row |= {"role": tensor.role, "name": tensor.name, "dtype": tensor.dtype}
    row |= {"exponent_min": min(occupied, default=None), "exponent_max": max(occupied, default=None)}
    for format, fit in tensor.formats.items():
        row[f"{format}_overflow_rate"] = fit.overflow_rate
        row[f"{format}_underflow_rate"] = fit.underflow_rate
        row[f"{format}_flushed_energy"] = fit.flushed_energy
    return row


def _layer(layer: Layer, report: Report) -> dict[str, Any]:
    row = {key: getattr(layer, key) for key in ("model", "fqn", "type", "parameters", "calls")}
    return row | {"format": report.plan.modules.get(layer.fqn)}


def _op(op: Op) -> dict[str, Any]:
    row = {key: getattr(op, key) for key in ("fqn", "op", "category", "calls", "input_amax", "flops")}
    row["location"] = str(op.location) if op.location else None
    return row | {f"{format}_local_error": error for format, error in op.local_error.items()}


def _finding(finding: Finding) -> dict[str, Any]:
    row = {key: getattr(finding, key, None) for key in COLUMNS["findings"]}
    where = finding.location
    return row | {"path": where.path if where else None, "line": where.line if where else None}
