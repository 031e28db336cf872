"""JUnit XML: a case for each module, and one for the verification."""

from __future__ import annotations

from xml.etree import ElementTree

from precaudit.model import Finding, Plan, Report
from precaudit.reporting.actions import settlement
from precaudit.reporting.facts import settled
from precaudit.reporting.headline import headline
from precaudit.reporting.places import WHOLE
from precaudit.reporting.results import sentence
from precaudit.reporting.words import prose, visible

HEADER = '<?xml version="1.0" encoding="utf-8"?>\n'
JOB = "(the whole job)"


def render_junit(report: Report) -> str:
    by_module: dict[str, list[Finding]] = {fqn: [] for fqn in _modules(report)}
    for finding in report.findings:
        by_module.setdefault(JOB if finding.fqn is None else finding.fqn, []).append(finding)
    suite = ElementTree.Element("testsuite", name="precaudit")
    _verification(suite, report)
    for fqn, findings in by_module.items():
        _module(suite, fqn, findings, report.plan)
    failures = len(suite.findall("testcase/failure"))
    counts = {"tests": len(suite), "failures": failures, "errors": 0, "skipped": len(suite.findall("testcase/skipped"))}
    suite.attrib |= {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", suite.attrib)
    root.append(suite)
    ElementTree.indent(root)
    return f"{HEADER}{ElementTree.tostring(root, encoding='unicode')}\n"


def _modules(report: Report) -> dict[str, None]:
    return dict.fromkeys([*report.plan.modules, *(layer.fqn for layer in report.layers)])


def _case(suite: ElementTree.Element, kind: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"precaudit.{kind}", name=visible(name))


def _verification(suite: ElementTree.Element, report: Report) -> None:
    case = _case(suite, "verification", "the plan trains the same as float32")
    title = headline(report).title
    if report.verification.verdict == "fail":
        failed = [f"{prose(gate.name)}: {prose(gate.detail)}" for gate in report.verification.gates if not gate.passed]
        ElementTree.SubElement(case, "failure", message=title).text = "\n".join([title, *failed])
    elif report.verification.verdict != "pass":
        ElementTree.SubElement(case, "skipped", message=title)


def _module(suite: ElementTree.Element, fqn: str, findings: list[Finding], plan: Plan) -> None:
    """A module's test case. Findings that the plan settles are mentioned but don't fail, as in commands without
    `--fail-on`."""
    case = _case(suite, "module", fqn or WHOLE)
    errors = [f for f in findings if f.severity == "error" and not settled(plan, f)]
    lines = [f"{f.severity} {visible(f.rule)}{settlement(plan, f)}: {sentence(f)}" for f in findings]
    if errors:
        failure = ElementTree.SubElement(
            case, "failure", message=prose(errors[0].message), type=visible(errors[0].rule)
        )
        failure.text = "\n".join(lines)
    planned = [] if fqn == JOB else [f"format: {plan.modules.get(fqn, 'not planned')}"]
    ElementTree.SubElement(case, "system-out").text = "\n".join([*planned, *lines])
