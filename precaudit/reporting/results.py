"""Findings for machine-readable formats: those of the report, its verdict, and its failed gates.

The functions take findings, not reports, so that comparisons can use them too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from precaudit.finding import fingerprint, ranked
from precaudit.model import Finding, Plan, Report, Severity
from precaudit.reporting.actions import actions, settlement
from precaudit.reporting.headline import headline
from precaudit.reporting.shown import as_shown
from precaudit.reporting.unfinished import cut_short, details
from precaudit.words import prose, visible

VERDICT_RULE = "PA001"
GATE_RULE = "PA002"
VERDICT_SEVERITY: dict[str, Severity] = {"fail": "error", "inconclusive": "warning"}


def results(report: Report) -> list[Finding]:
    """All findings, errors first; none for a verified plan without findings."""
    report = as_shown(report)
    gates = [
        Finding(GATE_RULE, "error", f"the gate {gate.name} failed: {gate.detail}", "", evidence={"gate": gate.name})
        for gate in report.verification.gates
        if not gate.passed
    ]
    return ranked([*_verdict(report), *gates, *(_under(report.plan, finding) for finding in report.findings)])


def _under(plan: Plan, finding: Finding) -> Finding:
    """A finding that the plan settles is a note, and says so: hosts show nothing of the plan beside it."""
    suffix = settlement(plan, finding)
    return replace(finding, severity="note", message=prose(finding.message) + suffix) if suffix else finding


def _verdict(report: Report) -> list[Finding]:
    severity = "error" if cut_short(report) else VERDICT_SEVERITY.get(report.verification.verdict)
    if severity is None:
        return []
    message = "; ".join([headline(report).title, *details(report)])
    return [Finding(VERDICT_RULE, severity, message, actions(report)[0])]


def sentence(finding: Finding) -> str:
    """The message and the suggestion, on one line."""
    message, suggestion = prose(finding.message), prose(finding.suggestion)
    return f"{message.rstrip('.')}. What to do: {suggestion}" if suggestion else message or visible(finding.rule)


def fingerprints(findings: Iterable[Finding]) -> list[str]:
    """A unique fingerprint for each finding; equal ones are numbered, as hosts drop duplicates."""
    seen: dict[str, int] = {}
    unique = []
    for finding in findings:
        key = fingerprint(finding)
        seen[key] = seen.get(key, 0) + 1
        unique.append(key if seen[key] == 1 else hashlib.sha256(f"{key}{seen[key]}".encode()).hexdigest())
    return unique


def workspace_path(path: str) -> str:
    """The path as code hosts want it: relative to the checkout where it lies inside, with forward slashes."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR") or os.getcwd()
    whole = os.path.abspath(path)
    if Path(whole).is_relative_to(root):
        path = os.path.relpath(whole, root)
    return path.replace("\\", "/")


def uri(path: str) -> str:
    """A path as a URI reference."""
    path = workspace_path(path).encode("utf-8", "replace").decode()
    return ("file://" if PurePosixPath(path).is_absolute() else "") + quote(path)


def where(finding: Finding, report: Report) -> tuple[str, int]:
    """The finding's source line, else the first line of the script, as hosts show nothing without a location."""
    if finding.location is not None:
        return finding.location.path, max(1, finding.location.line)
    return str(report.job.get("script") or "train.py"), 1
