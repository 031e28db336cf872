"""Whatever a report file may hold, each renderer makes text of it: nobody gets a traceback from a renderer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_strategies import FREE_JSON, filled

from precaudit.model import Report
from precaudit.reporting import FORMATS, html, render

RENDERED = sorted(set(FORMATS) - {"svg"})
PERFORMANCE = [*report_samples.passing().performance, "seconds_in_runs", "steps_run"]
JOB = [*report_samples.passing().job, "kind", "models", "gradient_errors", "baseline"]
COST = ["price_per_hour", "usd_per_run_float32", "usd_per_run_plan", "energy_joules_per_thousand_steps_plan"]
PARTS = st.dictionaries(st.sampled_from(["native", "none", "median", "float32"]), FREE_JSON | st.floats(), max_size=3)
VALUES = FREE_JSON | st.floats() | PARTS | st.lists(PARTS, max_size=2)
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def facts(keys):
    return st.dictionaries(st.sampled_from(keys), VALUES, max_size=6)


@pytest.fixture(autouse=True, scope="module")
def _without_charts():
    """The library of the charts is the same for every report, and takes seconds to bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "_charts", lambda: None)
        yield


@SETTINGS
@given(report=filled(Report))
def test_any_report_is_rendered(report):
    for format in RENDERED:
        assert render(report, format)
    assert report._repr_html_()
    assert len(report.to_frame()) == sum(len(layer.tensors) for layer in report.layers)


@SETTINGS
@given(performance=facts(PERFORMANCE), job=facts(JOB), cost=facts(COST))
def test_any_fact_under_a_known_key_is_rendered(performance, job, cost):
    """`job`, `performance` and `cost` are free JSON: a known key may hold anything."""
    base = report_samples.failing()
    report = replace(
        base,
        performance=performance,
        job=job,
        cost=cost,
        environment=job,
        layers=base.layers[:1],
    )
    for format in RENDERED:
        assert render(report, format)
