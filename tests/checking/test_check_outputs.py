"""What check prints and writes: golden files, hostile names, 80 columns, and figures that agree."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import check_samples
import pytest
import report_samples
from golden_files import assert_golden

from precaudit.checking.records import FORMATS, Observed
from precaudit.checking.rendering import matched, render
from precaudit.checking.terminal import render_terminal
from precaudit.finding import finding

jsonschema = pytest.importorskip("jsonschema")

ENDINGS = {
    "terminal": "txt",
    "markdown": "md",
    "json": "json",
    "github": "github.txt",
    "sarif": "sarif",
    "gitlab": "gitlab.json",
    "junit": "xml",
}
SARIF_SCHEMA = Path(__file__).parent.parent / "reporting" / "sarif-schema-2.1.0.json"


@pytest.fixture(params=check_samples.SAMPLES)
def sample(request):
    return request.param, check_samples.SAMPLES[request.param]()


@pytest.mark.parametrize("format", FORMATS)
def test_golden(format, sample):
    name, report = sample
    text = render(report, format)
    assert_golden(f"check-{name}.{ENDINGS[format]}", text)
    text.encode()
    if format != "json":
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200e\u200f]", text)
    if format == "markdown":
        assert "<script" not in text


@pytest.mark.parametrize("color", [False, True])
def test_terminal_fits_80_columns(sample, color):
    text = re.sub("\x1b\\[[0-9;]*m", "", render_terminal(sample[1], color))
    assert max(map(len, text.splitlines())) <= 80
    assert "::error" not in text


def test_the_verdict_comes_first():
    assert render(check_samples.passing(), "terminal").splitlines()[2].startswith("PASSED: the plan holds")
    failed = render(check_samples.failing(), "terminal")
    assert failed.splitlines()[2].startswith("FAILED: 8 errors in coverage, ranges, target, outputs, hard")


@pytest.mark.parametrize("format", ["terminal", "markdown"])
def test_omitted_rows_are_counted_in_findings(format):
    """As check.json, which has them all, counts them: a line may stand for several."""
    gone = tuple(finding("PA701", "error", "gone", f"do {i}", fqn=fqn) for i in range(101) for fqn in ("a", "b"))
    text = render(check_samples.build("h100", gone, (), Observed()), format)
    assert f"... and {202 - 2 * text.count('PA701')} more" in text


def test_json_has_the_records_and_derived_values(sample):
    report = sample[1]
    data = json.loads(render(report, "json"))
    assert data["passed"] is report.passed
    assert [a["status"] for a in data["answers"]] == [a.status for a in report.answers]
    assert sum(len(a["findings"]) for a in data["answers"]) == len(report.findings)
    assert [m["relative_error"] for m in data["outputs"]] == [m.relative_error for m in report.outputs]


def test_sarif_is_valid(sample):
    jsonschema.validate(json.loads(render(sample[1], "sarif")), json.loads(SARIF_SCHEMA.read_text()))


def test_junit_counts_add_up(sample):
    suite = ElementTree.fromstring(render(sample[1], "junit")).find("testsuite")
    assert int(suite.get("tests")) == len(suite.findall("testcase")) == len(sample[1].answers)
    assert int(suite.get("failures")) == sum(answer.status == "failed" for answer in sample[1].answers)


@pytest.mark.parametrize(("rule", "matches"), [("PA742", 1), ("PA744", 0), ("warning", 1), ("headroom:1", 1)])
def test_fail_on(rule, matches):
    """A figure that was not measured breaks its rule."""
    assert len(matched(check_samples.failing(), [rule])) == matches


@pytest.mark.parametrize(("formats", "broken"), [(["bfloat16"], 0), (["bfloat16", "float16"], 1), (["float16"], 1)])
def test_fail_on_applies_to_every_format(formats, broken):
    """What is far from bfloat16's maximum may be near float16's."""
    layer = report_samples.layer("fc1", activation=4)
    report = check_samples.build("h100", (), (), Observed(), names=("fc1",), formats=formats, layers=(layer,))
    assert len(matched(report, ["headroom:6"])) == broken
