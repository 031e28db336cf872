"""JUnit XML: a case for each module, and one for the verification."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from precaudit.model import Finding, Report
from precaudit.reporting.actions import settlement
from precaudit.reporting.facts import settled
from precaudit.reporting.headline import headline
from precaudit.reporting.places import WHOLE
from precaudit.reporting.results import VERDICT_RULE, sentence
from precaudit.reporting.shown import as_shown
from precaudit.reporting.unfinished import cut_short, details
from precaudit.words import prose, visible

HEADER = '<?xml version="1.0" encoding="utf-8"?>\n'
JOB = "(the whole job)"


def render_junit(report: Report) -> str:
    report = as_shown(report)
    modules = dict.fromkeys([*report.plan.modules, *(layer.fqn for layer in report.layers)])
    by_module: dict[str, list[Finding]] = {fqn: [] for fqn in modules}
    for finding in report.findings:
        by_module.setdefault(JOB if finding.fqn is None else finding.fqn, []).append(finding)
    suite = Element("testsuite", name="precaudit")
    _verification(suite, report)
    for fqn, findings in by_module.items():
        _module(suite, fqn, findings, report)
    return document(suite)


def document(suite: Element) -> str:
    """The file that holds a suite, with its cases counted: those skipped in the suite alone, as JUnit has it."""
    failures, skipped = (len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "skipped"))
    counts = {"tests": len(suite), "failures": failures, "errors": 0, "skipped": skipped}
    suite.attrib |= {key: str(count) for key, count in counts.items()}
    root = Element("testsuites", {key: value for key, value in suite.attrib.items() if key != "skipped"})
    root.append(suite)
    indent(root)
    return f"{HEADER}{tostring(root, encoding='unicode')}\n"


def add_case(suite: Element, kind: str, name: str) -> Element:
    return SubElement(suite, "testcase", classname=f"precaudit.{kind}", name=visible(name))


def add_failure(case: Element, error: Finding, lines: Sequence[str]) -> None:
    failure = SubElement(case, "failure", message=prose(error.message), type=visible(error.rule))
    failure.text = "\n".join(lines)


def _verification(suite: Element, report: Report) -> None:
    case = add_case(suite, "verification", "the plan trains the same as float32")
    title = headline(report).title
    if report.verification.verdict == "fail" or cut_short(report):
        failed = [f"{prose(gate.name)}: {prose(gate.detail)}" for gate in report.verification.gates if not gate.passed]
        failure = SubElement(case, "failure", message=title, type=VERDICT_RULE)
        failure.text = "\n".join([title, *details(report), *failed])
    elif report.verification.verdict != "pass":
        SubElement(case, "skipped", message=title)


def _module(suite: Element, fqn: str, findings: list[Finding], report: Report) -> None:
    """A module's test case. Findings that the plan settles are mentioned but don't fail, as in commands without
    `--fail-on`."""
    plan = report.plan
    case = add_case(suite, "module", fqn or WHOLE)
    lines = [f"{f.severity} {visible(f.rule)}{settlement(plan, f)}: {sentence(f)}" for f in findings]
    if errors := [f for f in findings if f.severity == "error" and not settled(plan, f)]:
        add_failure(case, errors[0], lines)
    planned = [] if fqn == JOB else [f"format: {plan.modules.get(fqn, 'not planned')}"]
    SubElement(case, "system-out").text = "\n".join([*planned, *lines])
