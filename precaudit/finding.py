"""Creates findings, with a fingerprint that stays the same when lines, numbers and severities change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from precaudit.model import SEVERITIES, Finding, Location, Severity

USE_THE_PLAN = "use the plan instead of the script's own mixed precision"


def finding(
    rule: str,
    severity: Severity,
    message: str,
    suggestion: str,
    fqn: str | None = None,
    op: str | None = None,
    location: Location | None = None,
    **evidence: object,
) -> Finding:
    found = Finding(rule, severity, message, suggestion, fqn, op, location, evidence)
    return replace(found, fingerprint=fingerprint(found))


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity, errors first."""
    return sorted(findings, key=lambda found: SEVERITIES.index(found.severity))


def counted(findings: Iterable[Finding]) -> dict[Severity, int]:
    """The number of findings of each severity."""
    every = [found.severity for found in findings]
    return {severity: every.count(severity) for severity in SEVERITIES}


def fingerprint(found: Finding) -> str:
    """A hash of the rule and the place: layer, op, role, gate, the probed format, or else the script's name."""
    evidence = found.evidence
    probed = str(evidence.get("probe") or "").partition("@")[0]
    script = PurePosixPath(found.location.path).name if found.location and found.fqn is None else ""
    parts = [found.rule, found.fqn, found.op, evidence.get("role"), evidence.get("gate"), probed, script]
    return hashlib.sha256("\0".join(str(part or "") for part in parts).encode("utf-8", "replace")).hexdigest()
