"""The output formats of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from precaudit import reporting
from precaudit.checking import story
from precaudit.checking.markdown import render_markdown
from precaudit.checking.records import SCHEMA_VERSION, Answer, CheckReport
from precaudit.checking.terminal import render_terminal
from precaudit.comparison.limits import matches_fail_on
from precaudit.model import Report
from precaudit.reporting.junit import add_case, add_failure, document
from precaudit.reporting.results import sentence
from precaudit.reporting.serialize import indented, to_json
from precaudit.words import prose


def render(report: CheckReport, format: str) -> str:
    own = {"terminal": render_terminal, "markdown": render_markdown, "json": render_json, "junit": render_junit}
    return own[format](report) if format in own else reporting.render(as_report(report), format)


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
    suite = Element("testsuite", name="precaudit check")
    for answer in report.answers:
        _case(suite, story.question(report, answer), answer)
    return document(suite)


def _case(suite: Element, name: str, answer: Answer) -> None:
    case = add_case(suite, "check", name)
    lines = [f"{finding.severity} {finding.rule}: {sentence(finding)}" for finding in answer.findings]
    errors = [finding for finding in answer.findings if finding.severity == "error"]
    if errors:
        add_failure(case, errors[0], lines)
    elif not answer.measured:
        SubElement(case, "skipped", message=prose(answer.detail))
    SubElement(case, "system-out").text = "\n".join([prose(answer.detail), *([] if errors else lines)])
