"""The output formats of a check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from precaudit import reporting
from precaudit.checking.outcomes import HARD_NAMES
from precaudit.checking.records import SCHEMA_VERSION, Answer, CheckReport, HardInput, OutputMatch
from precaudit.comparison.limits import matches_fail_on
from precaudit.finding import counted
from precaudit.model import Report
from precaudit.reporting.grouped import grouped, unshown
from precaudit.reporting.junit import add_case, add_failure, document
from precaudit.reporting.markdown import SIGNS, bullets, code, findings_table, folded, table, text
from precaudit.reporting.places import place
from precaudit.reporting.results import sentence
from precaudit.reporting.serialize import indented, to_json
from precaudit.reporting.terminal import Page
from precaudit.words import is_number, listing, number, plural, prose, share, visible

MARKER = "<!-- precaudit:check -->"
"""By which a bot finds its previous comment, to replace it."""
COMMENT_ROWS = 100
LABELS = {"passed": "pass", "warned": "warn", "failed": "FAIL", "not measured": "?"}
MARKS = {"passed": "✅", "warned": "⚠️", "failed": "❌", "not measured": "not measured"}
HARD_LABELS = ("zeros", "x 2^10", "denormal", "batch 1", "longest")


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
    heading = {"schema_version": SCHEMA_VERSION, "passed": report.passed, "title": title(report)}
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
        _case(suite, question(report, answer), answer)
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


# ---------------------------------------------------------------- in a terminal of 80 columns


def render_terminal(report: CheckReport, color: bool = False) -> str:
    page = Page(color)
    script = visible(report.job.get("script") or "SCRIPT")
    page.text(f"precaudit {report.precaudit_version}: check {visible(report.job.get('plan', ''))}, {script}", "dim")
    page.lines.append("")
    page.text(title(report), tone(report))
    page.lines.append("")
    for answer in report.answers:
        label, name = LABELS[answer.status], question(report, answer)
        page.text(f"{label:<4}  {name}: {prose(answer.detail)}", "", indent="  ", hang="        ")
    _findings(page, report)
    _tables(page, report)
    return str(page)


def _findings(page: Page, report: CheckReport) -> None:
    groups = grouped(report.findings)
    if groups:
        page.section("Findings, and what to do", [])
    for group in groups[:ROWS]:
        where = place(group.told)
        page.finding(group.told, f" {where}" if where else "")
    if more := unshown(groups, ROWS):
        page.text(f"... and {more:,} more: see them all with -o check.json", indent="  ")


def _tables(page: Page, report: CheckReport) -> None:
    if report.outputs:
        page.section(f"Outputs against float32 ({report.execution})", [])
        page.table([*OUTPUT_HEADERS], output_rows(report.outputs)[:ROWS])
    if report.hard_inputs:
        page.section("Hard inputs, made from the last batch", [])
        page.table(["model, format", *HARD_LABELS], hard_rows(report.hard_inputs)[:ROWS])
        for reason in skipped(report):
            page.text(f"not tried: {reason}", indent="  ", hang="    ")


# ---------------------------------------------------------------- as a pull-request comment


def render_markdown(report: CheckReport) -> str:
    answers = [[MARKS[answer.status], text(question(report, answer)), text(answer.detail)] for answer in report.answers]
    untried = skipped(report)
    parts = [
        MARKER,
        f"## {SIGNS[tone(report)]} {text(title(report))}",
        f"{code(report.job.get('plan', 'plan.json'))}, {code(report.job.get('script') or 'SCRIPT')}",
        table(["", "question", "answer"], answers),
        _commented(report),
        _table("Outputs against float32", OUTPUT_HEADERS, output_rows(report.outputs)),
        _table("Hard inputs", ("model, format", *HARD_LABELS), hard_rows(report.hard_inputs)),
        folded("Not tried", bullets(untried)) if untried else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _commented(report: CheckReport) -> str:
    groups = grouped(report.findings)
    more = unshown(groups, COMMENT_ROWS)
    rest = f"\n\n... and {more:,} more in check.json" if more else ""
    return findings_table(groups[:COMMENT_ROWS]) + rest if groups else ""


def _table(heading: str, headers: tuple[str, ...], rows: list[list[str]]) -> str:
    cells = [[text(cell) for cell in row] for row in rows[:COMMENT_ROWS]]
    return folded(heading, table(headers, cells)) if cells else ""


# ---------------------------------------------------------------- in sentences, for all formats


OUTPUT_HEADERS = ("output", "format", "SNR dB", "error", "top-1", "finite")
ROWS = 24


def tone(report: CheckReport) -> str:
    if not report.passed:
        return "bad"
    return "open" if any(answer.status != "passed" for answer in report.answers) else "good"


def title(report: CheckReport) -> str:
    """The verdict in one line."""
    counts = counted(report.findings)
    formats = " and ".join(dict.fromkeys(each.format for each in report.deployments))
    where = f"{formats} on {visible(report.target)}"
    if not report.passed:
        failed = dict.fromkeys(answer.question for answer in report.answers if answer.status == "failed")
        return f"FAILED: {plural(counts['error'], 'error')} in {', '.join(failed)}; don't deploy {where} with this plan"
    unseen = dict.fromkeys(answer.question for answer in report.answers if not answer.measured)
    rest = [plural(counts["warning"], "warning")] * bool(counts["warning"]) + [f"{q} not measured" for q in unseen]
    beside = f" with {', '.join(rest)}" if rest else ""
    return f"PASSED{beside}: the plan holds for this model and data, {where}"


def question(report: CheckReport, answer: Answer) -> str:
    return f"{answer.question} ({answer.format})" if answer.format and len(report.deployments) > 1 else answer.question


def output_rows(matches: Sequence[OutputMatch]) -> list[list[str]]:
    """Rows on outputs, the worst first."""
    ordered = sorted(matches, key=lambda match: -(match.relative_error or 0.0))
    return [
        [
            visible(f"{match.model} {match.output}".rstrip()),
            match.format,
            _decibels(match.snr_db),
            share(match.relative_error) if is_number(match.relative_error) else number(match.relative_error),
            "-" if match.agreement is None else share(match.agreement),
            "missing" if match.missing else f"{match.nonfinite:,} lost" if match.nonfinite else "yes",
        ]
        for match in ordered
    ]


def _decibels(value: float | None) -> str:
    if value == math.inf:
        return "exact"
    return number(value) if value is None else f"{value:.1f}"


def hard_rows(tried: Sequence[HardInput]) -> list[list[str]]:
    """A row for each model and format, a column for each kind of hard input."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for hard in tried:
        cells.setdefault((hard.model, hard.format), {})[hard.kind] = outcome(hard)
    return [
        [f"{visible(model)} {name}", *(row.get(kind, "-") for kind in HARD_NAMES)]
        for (model, name), row in cells.items()
    ]


def outcome(hard: HardInput) -> str:
    """The result of a hard input in a word or two."""
    if hard.skipped:
        return "-"
    if hard.raised:
        return "raises"
    if hard.nonfinite:
        return f"to 2^{hard.safe_exponent}" if hard.safe_exponent else "not finite"
    return "float32 too" if hard.reference_nonfinite else "finite"


def skipped(report: CheckReport) -> list[str]:
    """Why hard inputs were not tried, with the models for each reason."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for hard in report.hard_inputs:
        if hard.skipped:
            reasons.setdefault((HARD_NAMES[hard.kind], hard.skipped), {})[hard.model] = None
    return [f"{kind}, {listing(models)}: {prose(why)}" for (kind, why), models in reasons.items()][:ROWS]
