"""Which layers a report shows first, and what it shows of them."""

from dataclasses import replace

import pytest
from report_samples import layer, record, sample_report

from precaudit.histograms import observe
from precaudit.reporting import render
from precaudit.reporting.ranges import masks, ranked_layers, rows

FORMATS = ("bfloat16", "float16")


def shown(values):
    """The first layer of a report, and the losses shown of a layer whose output has these values."""
    torch = pytest.importorskip("torch")
    report = sample_report()
    tensors = (record("activation", observe(torch.tensor(values))),)
    attention = replace(layer("attend"), tensors=tensors)
    report = replace(report, layers=(*report.layers, attention))
    ((_, _, _, _, *lost),) = rows([attention], FORMATS, "!")
    return report, lost


def test_masks_are_no_overflow():
    report, lost = shown([-3.4028234e38, -3.4028234e38, 1.0, 2.0])
    assert lost == ["0%", "0%"]
    assert ranked_layers(report)[0].fqn != "attend"
    assert masks(report)
    assert masks(report) in render(report, "markdown")


def test_what_overflows_beside_masks_is_shown():
    report, lost = shown([-3.4028234e38, 1e5, 1.0, 2.0])
    assert lost == ["0%", "25.0%!"]
    assert ranked_layers(report)[0].fqn == "attend"


def test_large_values_that_are_no_masks():
    report, lost = shown([1e36, 1e5, 1.0, 2.0])
    assert lost == ["0%", "50.0%!"]
    assert not masks(report)
