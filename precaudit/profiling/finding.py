"""One finding, with the fingerprint by which it is known again."""

from __future__ import annotations

import hashlib

from precaudit.model import Finding, Location, Severity


def fingerprint(rule: str, fqn: str | None, op: str | None) -> str:
    """Stable while the layer and the rule are the same: lines may move, numbers may change."""
    return hashlib.sha256(f"{rule}:{fqn}:{op}".encode()).hexdigest()[:16]


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
    return Finding(
        rule,
        severity,
        message,
        suggestion,
        fqn,
        op,
        location,
        evidence,
        fingerprint(rule, fqn, op),
    )
