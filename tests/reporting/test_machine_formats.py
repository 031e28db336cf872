from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import report_samples
from golden_files import assert_golden

from precaudit.errors import PrecauditError
from precaudit.model import Location, Report, Verification
from precaudit.reporting import EXTENSIONS, format_of, github, render, results, write
from precaudit.reporting.headline import headline
from precaudit.reporting.serialize import load_report

jsonschema = pytest.importorskip("jsonschema")

SARIF_SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_text())
GOLDEN = {"markdown": "md", "sarif": "sarif", "junit": "xml", "gitlab": "gitlab.json", "github": "github.txt"}


@pytest.fixture(autouse=True)
def _checkout(monkeypatch):
    """Paths are made relative to the checkout; the tests' own must not show."""
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", sorted(report_samples.SAMPLES))
@pytest.mark.parametrize("format", GOLDEN)
def test_golden(format, name):
    assert_golden(f"{format}-{name}.{GOLDEN[format]}", render(report_samples.sample_report(name), format))


def many_findings(errors: int, warnings: int) -> Report:
    findings = [report_samples.finding("PA203", "warning", f"w{i}") for i in range(warnings)]
    findings += [report_samples.finding("PA101", "error", f"e{i}") for i in range(errors)]
    apart = [replace(found, location=Location("train.py", line)) for line, found in enumerate(findings, 1)]
    return replace(report_samples.passing(), findings=tuple(apart))


# ---------------------------------------------------------------- SARIF


def test_sarif_fits_the_schema(sample):
    document = json.loads(render(sample, "sarif"))
    jsonschema.Draft4Validator(SARIF_SCHEMA).validate(document)
    run = document["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]


def test_sarif_paths_are_relative_uris(monkeypatch):
    monkeypatch.setenv("GITHUB_WORKSPACE", "/checkout")
    assert results.uri("/checkout/src/a model.py") == "src/a%20model.py"
    assert results.uri("src\\model.py") == "src/model.py"
    assert results.uri("/elsewhere/model.py") == "file:///elsewhere/model.py"


def test_fingerprints_do_not_depend_on_line_numbers():
    one = report_samples.finding()
    moved = replace(one, location=Location("model.py", 99), message="the output reaches 1.3e+05")
    other = replace(one, evidence={"role": "weight"})
    assert results.fingerprint(one) == results.fingerprint(moved)
    assert len({results.fingerprint(f) for f in (one, other, replace(one, fqn="x"), replace(one, rule="PA1"))}) == 4
    assert len(set(results.fingerprints([one, moved, one]))) == 3


# ---------------------------------------------------------------- JUnit


def test_findings_of_the_root_module_have_their_own_case():
    """Its name is empty, and it has a format like every module; what is found in the job has none."""
    base = report_samples.passing()
    plan = replace(base.plan, modules={"": "float16"}, default="float16")
    found = (report_samples.finding("PA101", "error", ""), report_samples.finding("PA301", "note", None))
    root = ElementTree.fromstring(render(replace(base, plan=plan, layers=(), findings=found), "junit"))
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert set(cases) == {"the plan trains the same as float32", "(the model itself)", "(the whole job)"}
    assert cases["(the model itself)"].find("failure") is not None
    assert cases["(the model itself)"].findtext("system-out").startswith("format: float16")
    assert "not planned" not in cases["(the whole job)"].findtext("system-out")


def test_junit_has_a_case_a_module(sample):
    root = ElementTree.fromstring(render(sample, "junit"))
    suite = root[0]
    cases = suite.findall("testcase")
    modules = {
        *sample.plan.modules,
        *(layer.fqn for layer in sample.layers),
        *(f.fqn for f in sample.findings if f.fqn),
    }
    whole = any(finding.fqn is None for finding in sample.findings)
    assert len(cases) == 1 + len(modules) + whole
    assert int(suite.get("tests")) == len(cases)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))


def test_junit_fails_the_module_to_blame_and_the_verification():
    root = ElementTree.fromstring(render(report_samples.failing(), "junit"))
    failed = {case.get("name") for case in root.iter("testcase") if case.find("failure") is not None}
    assert failed == {"blocks.1.mlp.proj", "the plan trains the same as float32"}


def test_junit_does_not_fail_a_module_that_the_plan_has_in_a_format_that_suits_it():
    base = report_samples.passing()
    found = replace(report_samples.finding("PA101", "error", "norm"), evidence={"formats": "float16"}, op=None)
    plan = replace(base.plan, modules={"norm": "float32", "fc": "float16"}, default="float16")
    case = "testcase[@name='norm']"
    root = ElementTree.fromstring(render(replace(base, plan=plan, findings=(found,)), "junit"))[0]
    assert root.find(f"{case}/failure") is None
    assert "error PA101 (settled by the plan)" in root.findtext(f"{case}/system-out")
    for format in ("terminal", "markdown"):
        assert "(settled by the plan)" in render(replace(base, plan=plan, findings=(found,)), format)
    low = replace(plan, modules={"norm": "float16"})
    assert (
        ElementTree.fromstring(render(replace(base, plan=low, findings=(found,)), "junit"))[0].find(f"{case}/failure")
        is not None
    )


def test_code_hosts_are_told_a_note_of_what_the_plan_settles():
    base = report_samples.passing()
    found = replace(report_samples.finding("PA101", "error", "norm"), evidence={"formats": "float16"}, op=None)
    plan = replace(base.plan, modules={"norm": "float32", "fc": "float16"}, default="float16")
    (told,) = [each for each in results.results(replace(base, plan=plan, findings=(found,))) if each.rule == "PA101"]
    assert (told.severity, told.message) == ("note", f"{found.message} (settled by the plan)")
    low = replace(base, plan=replace(plan, modules={"norm": "float16"}), findings=(found,))
    assert found in results.results(low)


def test_junit_skips_what_was_not_verified():
    root = ElementTree.fromstring(render(report_samples.empty(), "junit"))
    assert len(root.findall(".//skipped")) == 1


# ---------------------------------------------------------------- GitLab


def test_gitlab_rows():
    rows = json.loads(render(report_samples.failing(), "gitlab"))
    assert {tuple(row) for row in rows} == {("description", "check_name", "fingerprint", "severity", "location")}
    assert Counter(row["severity"] for row in rows) == {"critical": 3, "major": 1, "info": 1}
    assert rows[2]["location"] == {"path": "model.py", "lines": {"begin": 42}}
    assert json.loads(render(report_samples.passing(), "gitlab")) == []


# ---------------------------------------------------------------- GitHub


def test_annotations_keep_the_hosts_limits_and_say_how_many_more():
    lines = render(many_findings(23, 12), "github").splitlines()
    levels = Counter(re.match(r"::(\w+) ", line)[1] for line in lines)
    assert levels == {"error": 10, "warning": 10}
    assert [line.startswith("::error") for line in lines] == [True] * 10 + [False] * 10
    assert lines[9].endswith("(and 13 more errors in the report)")
    assert lines[19].endswith("(and 2 more warnings in the report)")


def test_ten_annotations_have_no_remainder():
    assert "more" not in render(many_findings(10, 0), "github")


def test_annotations_stay_on_their_line():
    text = render(report_samples.hostile(), "github")
    for line in text.splitlines():
        assert re.fullmatch(r"::(error|warning|notice) file=[^:,]+,line=\d+,title=[^:,]*::.*", line), line
        assert not re.search(r"%(?!25|0A|0D|3A|2C)", line.split("::")[1])


def test_an_empty_annotation_list_explains_itself():
    assert render(report_samples.passing(), "github") == "::notice title=precaudit::no findings\n"


@pytest.mark.parametrize("stopped", ["failed", "killed", "interrupted"])
def test_a_profile_that_was_cut_short_is_no_clean_one(stopped):
    unverified = Verification(reason="ValueError: no such file")
    report = replace(report_samples.passing(), findings=(), verification=unverified, job={"stopped": stopped})
    title, why = headline(report).title, "Why: ValueError: no such file"
    message = f"{title}; {why}. What to do: "
    assert render(report, "github").startswith(f"::error file=train.py,line=1,title=PA001::{message}")
    case = ElementTree.fromstring(render(report, "junit")).find("testsuite/testcase")
    assert case.find("failure").get("message") == title
    assert case.find("failure").text.splitlines() == [title, why]


def test_step_summary_only_in_actions(tmp_path):
    path = tmp_path / "summary.md"
    github.write_step_summary("text", {"GITHUB_STEP_SUMMARY": str(path)})
    assert not path.exists()
    github.write_step_summary("text\n", {"GITHUB_STEP_SUMMARY": str(path), "GITHUB_ACTIONS": "true"})
    assert path.read_text() == "text\n"


def test_step_summary_is_cut_below_the_hosts_limit(tmp_path):
    path = tmp_path / "summary.md"
    environ = {"GITHUB_STEP_SUMMARY": str(path), "GITHUB_ACTIONS": "true"}
    line = "é" * 99 + "\n"
    for _ in range(3):
        github.write_step_summary(line * 4_000, environ)
    assert path.stat().st_size <= github.SUMMARY_BYTES
    kept = path.read_text()
    assert kept.endswith(github.CUT)
    assert set(kept.removesuffix(github.CUT).replace(github.CUT, "\n").splitlines()) <= {line.strip(), ""}


# ---------------------------------------------------------------- Markdown


def test_markdown_begins_with_the_marker_and_the_verdict():
    lines = render(report_samples.passing(), "markdown").splitlines()
    assert lines[0] == "<!-- precaudit:report -->"
    assert lines[2].startswith("## ✅ VERIFIED: float16 trains the same as float32")


def test_markdown_tables_have_the_same_cells_in_every_row(sample):
    blocks = re.findall(r"(?:^\|.*\n)+", render(sample, "markdown"), re.MULTILINE)
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert bool(blocks) == bool(sample.layers)


@pytest.mark.parametrize("name", [*report_samples.SAMPLES, "huge"])
def test_markdown_fits_a_comment(name):
    report = report_samples.huge() if name == "huge" else report_samples.sample_report(name)
    assert len(render(report, "markdown")) < 65_536


def test_markdown_hostile_text_is_no_markup():
    text = render(report_samples.hostile(), "markdown")
    allowed = {"<!-- precaudit:report -->", "<details>", "<summary>", "</summary>", "</details>"}
    assert set(re.findall(r"<[^>]*>", text)) == allowed
    assert not re.search(r"^# heading", text, re.MULTILINE)
    assert text.count("```") % 2 == 0


# ---------------------------------------------------------------- the registry


FILES = {
    "report.json": "json",
    "a.HTML": "html",
    "x.sarif.json": "sarif",
    "x.sarif": "sarif",
    "junit.xml": "junit",
    "gl-code-quality-report.json": "gitlab",
    "x.gitlab.json": "gitlab",
    "notes.txt": "terminal",
    "x.md": "markdown",
}


@pytest.mark.parametrize(("name", "format"), FILES.items())
def test_the_extension_picks_the_format(name, format):
    assert format_of(Path(name)) == format


@pytest.mark.parametrize("name", ["report.pdf", "report", ".hidden", "md"])
def test_unknown_extensions_list_the_known_ones(name):
    with pytest.raises(PrecauditError, match=r"\.html") as caught:
        write(report_samples.passing(), name)
    assert all(extension in str(caught.value) for extension in EXTENSIONS)


def test_unknown_formats_list_the_known_ones():
    with pytest.raises(PrecauditError, match="terminal, markdown"):
        render(report_samples.passing(), "pdf")


def test_written_json_loads_again(tmp_path):
    write(report_samples.passing(), tmp_path / "deep" / "er" / "report.json")
    assert load_report(tmp_path / "deep" / "er" / "report.json") == report_samples.passing()


def test_a_report_saved_with_a_byte_order_mark_loads(tmp_path):
    path = tmp_path / "report.json"
    write(report_samples.passing(), path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_report(path) == report_samples.passing()


@pytest.mark.parametrize("format", ["markdown", "sarif", "junit", "gitlab", "github", "terminal"])
def test_no_format_has_invisible_characters(format):
    text = render(report_samples.hostile(), format)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_the_outermost_module_has_a_name_for_hosts():
    found = report_samples.finding(fqn="", message="it overflows")
    report = replace(report_samples.passing(), findings=(found,))
    assert "title=PA101 (the model itself)::it overflows" in render(report, "github")
    assert "(the model itself)" in json.loads(render(report, "gitlab"))[0]["description"]
