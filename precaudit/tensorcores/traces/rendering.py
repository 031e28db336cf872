"""Renders the Tensor Core usage of a trace: for a terminal of 80 columns, as Markdown, as one HTML page, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from precaudit import __version__
from precaudit.model import SCHEMA_VERSION, Kernel, LayerTime, TimeShare
from precaudit.reporting.markdown import bullets, code, table, text
from precaudit.reporting.page import Page
from precaudit.reporting.serialize import to_json
from precaudit.tensorcores.traces.analysis import CLASSES, Analysis
from precaudit.tensorcores.traces.kernel_names import readable
from precaudit.words import capitalized, inert, number, plural, seconds, share, shorten, visible

ROWS = 12
BAR = 24
WORTH_SAYING = 0.01
LONGEST_NAME = 160  # in a page
KERNELS, LAYERS = 200, 100
MEANING: Mapping[str, str] = {
    "native": "Tensor Cores, newest instructions",
    "legacy": "Tensor Cores, older and slower ones",
    "none": "no Tensor Cores; copies need none",
    "unknown": "their names don't tell",
}


@dataclass(frozen=True)
class Row:
    """Kernels of one name summed over the layers that ran them; `layer` is the one that spent most time in it."""

    name: str
    tensor_core: str
    rule: str
    share: float
    tflops: float | None
    layer: str


def rows(analysis: Analysis) -> list[Row]:
    """One row a kernel name and class, the slowest first."""
    merged: dict[tuple[str, str, str], list[Kernel]] = {}
    for kernel in analysis.tensor_cores.kernels:
        merged.setdefault((kernel.name, kernel.tensor_core, kernel.rule), []).append(kernel)
    found = [_row(kernels, analysis.seconds) for kernels in merged.values()]
    return sorted(found, key=lambda row: -row.share)


def _row(kernels: Sequence[Kernel], total: float) -> Row:
    spent = sum(k.seconds for k in kernels)
    rated = [k for k in kernels if k.tflops is not None]
    rated_seconds = sum(k.seconds for k in rated)
    flops = sum((k.tflops or 0.0) * k.seconds for k in rated)
    layers = list(dict.fromkeys(k.fqn for k in kernels if k.fqn))
    more = f" +{len(layers) - 1}" if len(layers) > 1 else ""
    first = kernels[0]
    return Row(
        name=first.name,
        tensor_core=first.tensor_core,
        rule=first.rule,
        share=spent / total if total else 0.0,
        tflops=flops / rated_seconds if rated_seconds else None,
        layer=f"{layers[0]}{more}" if layers else "-",
    )


_WRAPPER = re.compile(r"^(?:void )?(?:[\w:]+::)?Kernel2?<\s*([\w]+).*$")
_PREFIX = re.compile(r"^(?:void |std::enable_if<.*?>::type )")


def short_name(name: str) -> str:
    """A kernel's name without what every kernel's has: return type, namespaces, template and call arguments."""
    text = _WRAPPER.sub(r"\1", visible(readable(name)))
    text = _PREFIX.sub("", text).replace("(anonymous namespace)::", "")
    head = re.split(r"[<(]", text, maxsplit=1)[0] or text
    return head.removeprefix("at::native::")


def headline(analysis: Analysis) -> str:
    used = analysis.tensor_cores
    part = used.time_share or TimeShare(0.0, 0.0, 0.0, 1.0)
    where = visible(used.device or "an unnamed GPU")
    ran = f"{seconds(analysis.seconds)} of kernel time in {plural(analysis.calls, 'kernel')} on {where}"
    if not analysis.nvidia:
        return f"Not an NVIDIA GPU, so no Tensor Cores: {ran}."
    untold = analysis.used - part.native - part.legacy
    path = f" ({share(untold)} by a path that isn't known)" if untold >= WORTH_SAYING else ""
    unsure = f", {share(part.unknown - untold)} unknown" if part.unknown - untold >= WORTH_SAYING else ""
    return f"{share(analysis.used)} of the GPU time on Tensor Cores{path}{unsure}: {ran}."


def advice(analysis: Analysis) -> list[str]:
    if not analysis.nvidia:
        return ["Nothing can be said: the rules are for NVIDIA's kernels. Times by kernel and by layer hold."]
    lines = []
    for finding in analysis.findings:
        layers = finding.evidence.get("layers") or []
        where = f" in {layers[0]}" if len(layers) == 1 else f" in {len(layers)} layers" if layers else ""
        part = share(finding.evidence.get("share"))
        lines.append(f"{finding.rule}, {part} of the time{where}: {finding.message}. {finding.suggestion}.")
    return [visible(line) for line in lines] or ["Nothing stands out."]


def bars(analysis: Analysis) -> list[tuple[str, float, str]]:
    if not analysis.nvidia:
        return []
    part = analysis.tensor_cores.time_share
    values = [(label, getattr(part, label) if part else 0.0) for label in CLASSES]
    return [(label, value, "█" * round(value * BAR)) for label, value in values]


def top_layers(analysis: Analysis, count: int | None = 6) -> list[LayerTime]:
    return [layer for layer in analysis.tensor_cores.layers if layer.module][:count]


# ---------------------------------------------------------------- formats


def render_terminal(analysis: Analysis) -> str:
    page = Page()
    page.text(f"precaudit {__version__}: {visible(analysis.source)}")
    page.lines.append("")
    page.text(headline(analysis))
    page.section("What to do", advice(analysis))
    shares = [f"  {label:<8}{share(value):>7}  {bar:<{BAR}}  {MEANING[label]}" for label, value, bar in bars(analysis)]
    if shares:
        page.section("Share of GPU time by class", [])
        page.lines += shares
    _kernels(page, rows(analysis))
    if layers := top_layers(analysis):
        page.section("Layers", [])
        page.table(["layer", "time", *CLASSES, "TFLOP/s"], list(map(_layer_cells, layers)), texts=1)
    page.section("How it was measured", _method(analysis))
    return str(page)


def _kernels(page: Page, every: Sequence[Row]) -> None:
    page.section("Kernels", [])
    cells = [
        [
            short_name(row.name) or "-",
            row.tensor_core,
            shorten(row.rule, 14),
            shorten(inert(visible(row.layer)), 14),
            share(row.share),
            _rate(row.tflops),
        ]
        for row in every[:ROWS]
    ]
    page.table(["kernel", "class", "rule", "layer", "time", "TFLOP/s"], cells, texts=4)
    if rest := every[ROWS:]:
        page.text(f"{len(rest):,} more: {share(sum(row.share for row in rest))}", indent="  ")


def _layer_cells(layer: LayerTime) -> list[str]:
    parts = (f"{getattr(layer.time.time_share, label):.0%}" for label in CLASSES)
    return [visible(layer.fqn) or "-", share(layer.share), *parts, _rate(layer.time.tflops)]


def _rate(tflops: float | None) -> str:
    return "-" if tflops is None else number(tflops)


def _method(analysis: Analysis) -> list[str]:
    used = analysis.tensor_cores
    lines = [f"{capitalized(used.method)}."]
    if used.unattributed_share is not None:
        owner = "layer and no other known part of a step" if top_layers(analysis) else "operation"
        lines.append(f"Kernel time that belongs to no {owner}: {share(used.unattributed_share)}.")
    if used.eligible_flops_share is not None:
        eligible = share(used.eligible_flops_share)
        lines.append(f"FLOPs that Tensor Cores of this GPU could compute, by their operands: {eligible}.")
    return [visible(line) for line in (*lines, *used.notes)]


def render_markdown(analysis: Analysis) -> str:
    parts = [f"# Tensor Cores: {text(Path(analysis.source).name)}", text(headline(analysis))]
    classes = [[label, share(value), bar, MEANING[label]] for label, value, bar in bars(analysis)]
    kernels = [
        [
            code(shorten(short_name(row.name), 60)),
            share(row.share),
            row.tensor_core,
            row.rule,
            _rate(row.tflops),
            text(row.layer),
        ]
        for row in rows(analysis)[: 2 * ROWS]
    ]
    parts += ["## What to do", bullets(advice(analysis))]
    if classes:
        parts += ["## Share of GPU time by class", table(["class", "GPU time", "", "ran on"], classes)]
    parts += ["## Kernels", table(["kernel", "GPU time", "class", "rule", "TFLOP/s", "layer"], kernels)]
    if layers := top_layers(analysis, ROWS):
        cells = [[text(name), *figures] for name, *figures in map(_layer_cells, layers)]
        parts += ["## Layers", table(["layer", "GPU time", *CLASSES, "TFLOP/s"], cells)]
    parts += ["## How it was measured", bullets(_method(analysis))]
    return "\n\n".join(parts) + "\n"


def render_html(analysis: Analysis) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("precaudit", "reporting/templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["visible"] = visible
    kernels, layers = rows(analysis), top_layers(analysis, None)
    return environment.get_template("trace.html.j2").render(
        version=__version__,
        source=visible(Path(analysis.source).name),
        headline=headline(analysis),
        bars=bars(analysis),
        meaning=MEANING,
        rows=[(shorten(short_name(row.name), LONGEST_NAME), visible(row.name), row) for row in kernels[:KERNELS]],
        more_rows=plural(len(kernels[KERNELS:]), "more kernel") if kernels[KERNELS:] else "",
        layers=layers[:LAYERS],
        more_layers=plural(len(layers[LAYERS:]), "more layer") if layers[LAYERS:] else "",
        classes=CLASSES,
        advice=advice(analysis),
        method=_method(analysis),
        share=share,
        rate=_rate,
    )


def render_json(analysis: Analysis) -> str:
    """The `tensor_cores` of a report, with the findings about it."""
    mapping = {
        "schema_version": SCHEMA_VERSION,
        "precaudit_version": __version__,
        "source": analysis.source,
        "seconds": analysis.seconds,
        "tensor_core_share": analysis.used,
        "tensor_cores": analysis.tensor_cores,
        "findings": analysis.findings,
    }
    return json.dumps(to_json(mapping), indent=1) + "\n"


RENDERERS: Mapping[str, Callable[[Analysis], str]] = {
    "json": render_json,
    "html": render_html,
    "markdown": render_markdown,
    "terminal": render_terminal,
}
