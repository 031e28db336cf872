"""SARIF 2.1.0, for code hosts and editors."""

from __future__ import annotations

import json
from typing import Any

from precaudit.catalogue import rule_of
from precaudit.model import Finding, Report
from precaudit.reporting.results import fingerprints, results, sentence, uri, where
from precaudit.reporting.serialize import to_json
from precaudit.words import visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render_sarif(report: Report) -> str:
    return json.dumps(sarif(report, results(report)), indent=2) + "\n"


def sarif(report: Report, findings: list[Finding]) -> dict[str, Any]:
    rules = {finding.rule: finding for finding in reversed(findings)}
    driver = {
        "name": "precaudit",
        "version": visible(report.precaudit_version) or "0",
        "rules": [_rule(rules[rule]) for rule in sorted(rules)],
    }
    keys = fingerprints(findings)
    rows = [_result(finding, key, report, sorted(rules)) for finding, key in zip(findings, keys, strict=True)]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": rows}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(worst: Finding) -> dict[str, Any]:
    """A rule's entry: the catalogue's text, and the severity of the rule's worst finding here."""
    rule = rule_of(worst.rule)
    return {
        "id": visible(rule.id),
        "shortDescription": {"text": visible(rule.title)},
        "fullDescription": {"text": rule.meaning},
        "help": {"text": f"{rule.meaning} {rule.remedy}".rstrip()},
        "defaultConfiguration": {"level": worst.severity},
    }


def _result(finding: Finding, key: str, report: Report, rules: list[str]) -> dict[str, Any]:
    path, line = where(finding, report)
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": uri(path)}, "region": {"startLine": line}}
    }
    if finding.fqn:
        place["logicalLocations"] = [{"fullyQualifiedName": visible(finding.fqn), "kind": "module"}]
    return {
        "ruleId": visible(finding.rule),
        "ruleIndex": rules.index(finding.rule),
        "level": finding.severity,
        "message": {"text": sentence(finding)},
        "locations": [place],
        "partialFingerprints": {"precauditFinding/v1": key},
        "properties": {"op": to_json(finding.op), "evidence": to_json(finding.evidence)},
    }
