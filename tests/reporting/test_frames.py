from __future__ import annotations

import pytest
import report_samples

from precaudit.errors import PrecauditError
from precaudit.model import Report


def test_layers_have_one_row_per_role():
    report = report_samples.passing()
    table = report.to_frame()
    assert len(table) == sum(len(layer.tensors) for layer in report.layers)
    row = table[(table.fqn == "head") & (table.role == "activation")].iloc[0]
    stats = report.layers[-1].tensor("activation").stats
    assert (row.amax, row.rms, row.numel, row.format) == (stats.amax, stats.rms, stats.numel, "float16")
    assert row.float16_underflow_rate == report.layers[-1].tensor("activation").formats["float16"].underflow_rate
    assert 2.0**row.exponent_max <= row.amax < 2.0 ** (row.exponent_max + 1)
    assert table.numel.sum() == sum(t.stats.numel for layer in report.layers for t in layer.tensors)


def test_ops_and_findings():
    report = report_samples.failing()
    assert report.to_frame("ops").iloc[0].location == "train.py:31"
    assert list(report.to_frame("findings").severity) == ["note", "error", "warning"]


@pytest.mark.parametrize("table", ["layers", "ops", "findings"])
def test_empty_tables_keep_their_columns(table):
    frame = Report().to_frame(table)
    assert len(frame) == 0
    assert "fqn" in frame.columns


def test_unknown_tables_are_named():
    with pytest.raises(PrecauditError, match="layers, ops, findings"):
        report_samples.passing().to_frame("kernels")


def test_notebook_summary_is_escaped(sample):
    text = sample._repr_html_()
    assert "<script" not in text
    assert "\u202e" not in text
    assert len(text) < 20_000


def test_notebook_summary_says_the_verdict():
    assert "VERIFIED: float16 trains the same" in report_samples.passing()._repr_html_()
