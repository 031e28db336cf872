"""The output formats of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from precaudit import reporting
from precaudit.checking import story
from precaudit.checking.markdown import render_markdown
from precaudit.checking.records import SCHEMA_VERSION, Answer, CheckReport
from precaudit.checking.terminal import render_terminal
from precaudit.comparison.limits import matches_fail_on
from precaudit.model import Report
from precaudit.reporting.results import sentence
from precaudit.reporting.serialize import indented, to_json
from precaudit.reporting.words import prose, visible

FORMATS = ("terminal", "markdown", "json", "github", "sarif", "gitlab", "junit")


def render(report: CheckReport, format: str) -> str:
    if format == "terminal":
        return render_terminal(report)
    if format == "markdown":
        return render_markdown(report)
    if format == "json":
        return render_json(report)
    if format == "junit":
        return render_junit(report)
    return reporting.render(as_report(report), format)


def as_report(report: CheckReport) -> Report:
    """The check as a Report, for the renderers of annotations, SARIF and code quality, and for --fail-on."""
    return Report(
        job=report.job,
        layers=report.layers,
        findings=report.findings,
        plan=report.deployments[0].plan,
        precaudit_version=report.precaudit_version,
    )


def matched(report: CheckReport, rules: Sequence[str]) -> tuple[str, ...]:
    """A sentence for every rule of --fail-on that the plan breaks in one of the formats that were asked for."""
    each = (replace(as_report(report), plan=deployment.plan) for deployment in report.deployments)
    return tuple(dict.fromkeys(said for one in each for said in matches_fail_on(one, rules)))


def render_json(report: CheckReport) -> str:
    """The records as JSON, with derived values."""
    heading = {"schema_version": SCHEMA_VERSION, "passed": report.passed, "title": story.title(report)}
    body = to_json(report)
    body["answers"] = [to_json(a) | {"status": a.status} for a in report.answers]
    body["outputs"] = [
        to_json(m)
        | {"relative_error": to_json(m.relative_error), "snr_db": to_json(m.snr_db), "agreement": m.agreement}
        for m in report.outputs
    ]
    return indented(heading | body)


def render_junit(report: CheckReport) -> str:
    """A case for each question."""
    suite = ElementTree.Element("testsuite", name="precaudit check")
    for answer in report.answers:
        _case(suite, story.question(report, answer), answer)
    failures, skipped = (len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "skipped"))
    counts = {"tests": len(suite), "failures": failures, "errors": 0, "skipped": skipped}
    suite.attrib |= {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", suite.attrib)
    root.append(suite)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _case(suite: ElementTree.Element, name: str, answer: Answer) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname="precaudit.check", name=visible(name))
    lines = [f"{finding.severity} {finding.rule}: {sentence(finding)}" for finding in answer.findings]
    errors = [finding for finding in answer.findings if finding.severity == "error"]
    if errors:
        failure = ElementTree.SubElement(case, "failure", message=prose(errors[0].message), type=errors[0].rule)
        failure.text = "\n".join(lines)
    elif not answer.measured:
        ElementTree.SubElement(case, "skipped", message=prose(answer.detail))
    ElementTree.SubElement(case, "system-out").text = "\n".join([prose(answer.detail), *([] if errors else lines)])
