"""GitLab's code quality report."""

from __future__ import annotations

import json

from precaudit.model import Report
from precaudit.reporting.places import place
from precaudit.reporting.results import fingerprints, results, where, workspace_path
from precaudit.words import prose, visible

SEVERITIES = {"error": "critical", "warning": "major", "note": "info"}


def render_gitlab(report: Report) -> str:
    findings = results(report)
    rows = []
    for finding, key in zip(findings, fingerprints(findings), strict=True):
        path, line = where(finding, report)
        name = place(finding)
        rows.append(
            {
                "description": f"{prose(finding.message)}{f' [{name}]' if name else ''}",
                "check_name": visible(finding.rule),
                "fingerprint": key,
                "severity": SEVERITIES[finding.severity],
                "location": {"path": visible(workspace_path(path)), "lines": {"begin": line}},
            }
        )
    return json.dumps(rows, indent=2) + "\n"
