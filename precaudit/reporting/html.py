"""report.html: a self-contained file, for managers first and engineers second."""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from precaudit import __version__
from precaudit.model import Plan, Report, Trial
from precaudit.reporting import DEFAULT_PLAN, costs, pasting, planned, ranges, unfinished
from precaudit.reporting.actions import actions, causes, counts
from precaudit.reporting.cached import cached
from precaudit.reporting.drawing import CHARTS, KINDS, hindrance, vega
from precaudit.reporting.facts import listed, notes, settled, unsound
from precaudit.reporting.grouped import Group, folded
from precaudit.reporting.headline import BADGES, headline
from precaudit.reporting.json_text import dumps
from precaudit.reporting.page_data import kinds, page_data, times
from precaudit.reporting.places import WHOLE, place
from precaudit.reporting.serialize import dump_plan, to_json
from precaudit.reporting.shown import as_shown
from precaudit.words import (
    NOT_MEASURED,
    SHORT_FORMATS,
    listing,
    number,
    plural,
    power,
    prose,
    seconds,
    share,
    signed,
    visible,
)

ROWS = 12
LONGEST = 300
WITHOUT_CHARTS = "The charts are missing. Where this page was made, {}; then make it again with precaudit report."


def render_html(report: Report, plan: Path = DEFAULT_PLAN) -> str:
    environment = Environment(
        loader=PackageLoader("precaudit.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    source = {name: _template_text(environment, name) for name in ("report.css", "report.js")}
    report = as_shown(report)
    charts, data = _charts(), page_data(report)
    library, specs = charts or (None, None)
    scripts = [source["report.js"], *([library] if library else [])]
    context = (
        _story(report, plan)
        | _tables(report)
        | {
            "policy": _policy(scripts),
            "css": Markup(source["report.css"]),
            "script_code": Markup(source["report.js"]),
            "library": library,
            "without_charts": WITHOUT_CHARTS.format(hindrance()),
            "drawn": any(data["tensors"].values()),
            "data": packed({"page": data, "plan": dump_plan(report.plan), "specs": specs}),
            "version": visible(report.precaudit_version or __version__),
        }
    )
    return environment.get_template("report.html.j2").render(context)


def packed(value: Any) -> str:
    """JSON as gzip in base64: a sixth of the size for thousands of layers, and no sign in it is markup."""
    return base64.b64encode(gzip.compress(dumps(value), mtime=0)).decode()


def _template_text(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _charts() -> tuple[Markup, dict[str, Any]] | None:
    """Vega and the compiled charts; None where they can't be made."""
    if hindrance():
        return None
    library = cached(f"vega-{version('vl-convert-python')}", _bundled)
    return Markup(library), {name: vega(name) for name in CHARTS}


def _bundled() -> str:
    import vl_convert

    library: str = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;")
    return library


def _policy(scripts: Iterable[str]) -> str:
    """Only our own scripts run, nothing is fetched or evaluated: Vega interprets its expressions."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; img-src data:"


# ---------------------------------------------------------------- what the page says


def _story(report: Report, plan: Path) -> dict[str, Any]:
    v = report.verification
    return {
        "head": headline(report),
        "badge": unfinished.badge(report) or ("Repair float32" if unsound(report) else BADGES[v.verdict]),
        "script": " ".join(pasting.script(report)),
        "tiles": tiles(report),
        "actions": actions(report),
        "code": "\n".join(pasting.paste_lines(report, plan)),
        "loss_scale": planned.loss_scale(report),
        "repairs": planned.repairs(report),
        "no_gates": planned.no_gates(report),
        "plan_default": planned.plan_default(report),
        "findings_note": ", ".join(counts(report)) or f"None: {unfinished.no_findings(report)}.",
        "costs": [*costs.tensor_cores(report), *costs.time_and_money(report)],
        "notes": notes(report),
    }


def tiles(report: Report) -> list[dict[str, Any]]:
    """The verdict in figures."""
    return [_learning(report), _precision(report), _scale(report), _tensor_cores(report), _findings_tile(report)]


def _tile(label: str, value: str, note: str, interval: list[float] | None = None) -> dict[str, Any]:
    return {"label": label, "value": value, "note": note, "interval": interval}


def _learning(report: Report) -> dict[str, Any]:
    difference, margin = report.verification.difference, report.verification.margin
    if difference.mean is None or margin is None:
        return _tile("Loss against float32", NOT_MEASURED, "no pair of training runs was compared")
    note = f"allowed ±{share(margin)}"
    ends = (difference.lower, difference.upper)
    if ends[0] is None or ends[1] is None:
        return _tile("Loss against float32", signed(difference.mean), note)
    interval = _interval(difference.mean, ends[0], ends[1], margin)
    note = f"between {signed(ends[0])} and {signed(ends[1])}, {note}"
    return _tile("Loss against float32", signed(difference.mean), note, interval)


def _interval(mean: float, lower: float, upper: float, margin: float) -> list[float] | None:
    """Left end, width and mean in per cent of a picture that spans ±2 margins."""
    if not margin > 0 or not all(map(math.isfinite, (mean, lower, upper, margin))):
        return None
    left, middle, right = (min(100.0, max(0.0, 50 + 25 * value / margin)) for value in (lower, mean, upper))
    return [round(left, 2), round(max(0.0, right - left), 2), round(middle, 2)]


def _precision(report: Report) -> dict[str, Any]:
    plan = report.plan
    if not plan.modules:
        return _tile("Plan", "none", planned.plan_default(report).rstrip("."))
    rest = sum(format != plan.default for format in plan.modules.values())
    note = f"{len(plan.modules) - rest:,} of {plural(len(plan.modules), 'module')}"
    return _tile(f"Default on {prose(plan.target)}", plan.default, note)


def _scale(report: Report) -> dict[str, Any]:
    scale = report.plan.loss_scale
    if not report.plan.modules:
        return _tile("Loss scale", NOT_MEASURED, "there is no plan")
    if scale.mode == "none":
        return _tile("Loss scale", "not needed", "gradients fit as they are")
    window = f"2^{scale.window[0]} to 2^{scale.window[1]}" if scale.window else NOT_MEASURED
    return _tile("Safe loss scales", window, f"{scale.mode}, starting at {power(scale.init_scale)}")


def _tensor_cores(report: Report) -> dict[str, Any]:
    used = report.tensor_cores
    if used.time_share is not None:
        return _tile("On Tensor Cores", share(used.time_share.native), "of the GPU time, natively")
    if used.eligible_flops_share is not None:
        eligible = share(used.eligible_flops_share)
        return _tile("Could use Tensor Cores", eligible, "of the arithmetic in products; time not measured")
    return _tile("Tensor Cores", NOT_MEASURED, "no GPU kernel was timed")


def _findings_tile(report: Report) -> dict[str, Any]:
    found = counts(report)
    if not found:
        return _tile("Findings", "none", unfinished.no_findings(report))
    return _tile("Findings", found[0], ", ".join(found[1:]))


# ---------------------------------------------------------------- tables


def _tables(report: Report) -> dict[str, Any]:
    formats = ranges.audited_formats(report)
    v = report.verification
    findings = [_finding(report.plan, group) for group in causes(report)]
    exceptions = planned.exceptions(report.plan)
    return {
        "layers": bool(report.layers),
        "modules": bool(report.plan.modules),
        "formats": [SHORT_FORMATS.get(name, visible(name)) for name in formats],
        "range_rows": _range_rows(report, formats),
        "trials": [_trial(trial) for trial in v.trials],
        "kinds": [(kind, KINDS[kind]) for kind in kinds(v)],
        "turns": bool(listed(report, "optimizer_of_loss")),
        "trials_note": f"{plural(len(v.trials), 'training run')}. Runs of one seed see the same data, initialisation "
        "and dropout, so that only the precision differs.",
        "gates": [(g.passed, prose(g.name), prose(g.detail)) for g in sorted(v.gates, key=lambda gate: gate.passed)],
        "findings": findings[:ROWS],
        "more_findings": findings[ROWS:],
        "more_note": plural(sum(max(1, len(told["members"])) for told in findings[ROWS:]), "more finding"),
        "exceptions": [
            {"format": group.format, "why": group.why, "names": listing(folded(group.names))}
            for group in exceptions[:ROWS]
        ],
        "more_exceptions": plural(len(exceptions[ROWS:]), "more reason") if exceptions[ROWS:] else "",
        "times": [_time(row) for row in times(report)],
        "times_before": any(row["before"] for row in times(report)),
        "kernels": [
            (visible(k.name)[:LONGEST], visible(k.tensor_core), visible(k.rule), f"{k.calls:,}", seconds(k.seconds))
            for k in sorted(report.tensor_cores.kernels, key=lambda kernel: -kernel.seconds)[:ROWS]
        ],
        "job": _facts(report.job, but=("notes", "gradient_errors", "optimizer_of_loss")),
        "gradient_errors": _gradient_errors(report),
        "environment": _facts(report.environment),
    }


def _range_rows(report: Report, formats: list[str]) -> list[list[str]]:
    rows = ranges.rows(ranges.ranked_layers(report)[:ROWS], formats, " overflow")
    return [[visible(fqn) or WHOLE, *cells] for fqn, *cells in rows]


def _trial(trial: Trial) -> list[str]:
    ends = [number(trial.losses[0]), number(trial.losses[-1])] if trial.losses else [NOT_MEASURED, NOT_MEASURED]
    counts = [str(trial.seed), str(trial.steps or len(trial.losses))]
    return [visible(trial.plan), *counts, *ends, str(trial.skipped_steps), seconds(trial.seconds), prose(trial.status)]


def _time(row: Mapping[str, Any]) -> list[str]:
    cells = [row["name"]]
    for classes in (row["before"], row["seconds"]):
        spent = sum(classes.values())
        cells += [seconds(spent), share(classes.get("native", 0.0) / spent)] if spent else ["-", "-"]
    return cells


def _finding(plan: Plan, group: Group) -> dict[str, Any]:
    finding, several = group.told, len(group.members) > 1
    return {
        "severity": finding.severity,
        "settled": settled(plan, group.members[0]),
        "rule": visible(finding.rule),
        "place": place(finding) or "the whole model",
        "message": prose(finding.message),
        "suggestion": prose(finding.suggestion),
        "evidence": [] if several else _facts(finding.evidence),
        "members": [(place(each), prose(each.message)) for each in group.members] if several else [],
    }


def _gradient_errors(report: Report) -> list[list[str]]:
    """Format and phase of training, then error over noise, signal over error, and bias."""
    rows = [row for row in listed(report, "gradient_errors") if isinstance(row, Mapping)]
    return [
        [visible(row.get("probe")).replace("@", ", at "), *(number(row.get(key)) for key in ("rho", "snr", "bias"))]
        for row in rows[:ROWS]
    ]


def _facts(mapping: Mapping[str, Any], but: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Facts as text; nested ones as JSON, truncated if long."""
    return [(visible(key).replace("_", " "), _fact(value)) for key, value in mapping.items() if key not in but]


def _fact(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list | tuple) and not any(isinstance(part, list | tuple | Mapping) for part in value):
        value = ", ".join(map(str, value)) or "none"
    text = value if isinstance(value, str) else dumps(to_json(value)).decode()
    return visible(text) if len(text) <= LONGEST else f"{visible(text[:LONGEST])}…"
