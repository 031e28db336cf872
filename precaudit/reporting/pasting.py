"""The lines to paste into the user's training code, and the next command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from precaudit.model import Report
from precaudit.reporting import DEFAULT_PLAN, unfinished
from precaudit.reporting.facts import from_python, has_the_plan, is_plain_autocast, listed, scaled_by_hand, unsound
from precaudit.reporting.places import installed, short_file
from precaudit.reporting.undecided import what_decides
from precaudit.words import TORCHRUN, inert, visible

LOOP = (
    "# every step: scaler.scale(loss).backward()",
    "#             scaler.unscale_(optimizer), before gradients are clipped or read",
    "#             scaler.step(optimizer); scaler.update()",
)
BY_HAND = (
    "# the same by torch alone:",
    '#     with torch.autocast("cuda", torch.{format}):',
    "#         outputs = model(inputs)",
    "#     outputs.float() for a loss outside of the model",
)


def paste_lines(report: Report, plan: Path = DEFAULT_PLAN) -> list[str]:
    """Python code that applies the plan; empty where there is none, or none to recommend."""
    if not report.plan.is_low_precision or report.verification.verdict == "fail" or unsound(report):
        return []
    scaled = report.plan.loss_scale.mode != "none"
    library = _of_a_library(report) if scaled else []
    return [
        *_caveats(report),
        "import precaudit",
        f"plan = precaudit.load_plan({json.dumps(visible(plan), ensure_ascii=False)})",
        *_applied(_models(report)),
        *(library or (["scaler = plan.grad_scaler()", *LOOP] if scaled else [])),
        *_beside_the_plan(report, scaled, bool(library)),
    ]


def _caveats(report: Report) -> Iterator[str]:
    if has_the_plan(report):
        yield "# not needed while the script's own autocast does the same"
    if "scripted" in report.own_precision:
        yield "# modules that torch.jit compiled take no plan: run with PYTORCH_JIT=0"
    if report.verification.verdict != "pass":
        yield "# this plan is not verified"


def _beside_the_plan(report: Report, scaled: bool, by_library: bool) -> Iterator[str]:
    """What becomes of the script's own mixed precision; without any, the same by torch alone."""
    own = report.own_precision
    if own.keys() & {"autocast", "plan", "grad_scaler"} and not by_library:
        yield "# in place of the script's own mixed precision, which was off in the trials"
    elif is_plain_autocast(report) and len(_models(report)) == 1:
        yield from (line.format(format=report.plan.default) for line in BY_HAND)
    if "casts" in own:
        yield "# without the script's own casts to low precision, as in the trials"
    if scaled_by_hand(report) and scaled:
        yield "# with the loss scale that the script keeps by hand, as in the trials"


def _applied(models: list[str]) -> list[str]:
    """The calls of `apply`, with the models' names if there are several, whose modules may have equal names. A model in
    a list or an attribute has a name here that the script doesn't have."""
    if len(models) == 1:
        written = ["# write what your code calls the model, such as self.net"] if models != ["model"] else []
        return [*written, f"precaudit.apply({models[0]}, plan)"]
    written = ["# write what your code calls each model, such as nets[0]; name= stays"]
    return written + [f'precaudit.apply({name}, plan, name="{name}")' for name in models]


def _of_a_library(report: Report) -> list[str]:
    """Where a library calls backward, there is no line of the person's own to put a scaler into."""
    places = listed(report, "backward_at")
    if not places or not all(installed(str(place)) for place in places):
        return []
    called, own = short_file(str(places[0])), str(report.job.get("script")).partition(".")[0]
    if report.job.get("kind") == "module" and called.startswith(f"{own}/"):  # profile -m of an installed package
        return []
    return [
        f"# {inert(visible(called))} calls backward,",
        "# so your code has no place for a scaler: switch that library's own float16",
        "# mixed precision on, which scales the loss. What a step computes outside of",
        "# the model is float16 with it, too, and was float32 in the trials.",
    ]


def _models(report: Report) -> list[str]:
    """The script's names for the planned models; one may be a loss that contains the model."""
    planned = dict.fromkeys(layer.model for layer in report.layers if layer.fqn in report.plan.modules)
    return list(planned) if planned and all(map(str.isidentifier, planned)) else ["model"]


def next_command(report: Report, plan: Path = DEFAULT_PLAN) -> tuple[str, list[str]]:
    """When to run the next command for this verdict, and its parts that belong on one line, quoted for a shell."""
    verdict = report.verification.verdict
    subject = ["SCRIPT"] if report.job.get("kind") == "audit" or from_python(report) else script(report)
    if verdict == "pass" and report.plan.is_low_precision:
        return "Next, before you deploy:", [_precaudit(report), "check", f"--plan {_quote(plan)}", *subject]
    broken = verdict == "fail" or unsound(report) or unfinished.needs_mending(report)
    label = "Next, after the fixes:" if broken else "Next:"
    more = {} if broken else what_decides(report)
    options = _options(report, plan) | more
    given = [f"{_quote(name)} {_quote(value)}" for name, value in options.items()]
    return label, [_precaudit(report), "profile", "--force", *given, *subject]


def _precaudit(report: Report) -> str:
    """The program, started as the script needs it."""
    return TORCHRUN if report.job.get("launcher") == "torchrun" or unfinished.lacks_launcher(report) else "precaudit"


def _options(report: Report, plan: Path) -> dict[str, str]:
    """The options of the profile that made the report, for the same folder."""
    given, name, folder = report.job.get("options"), str(report.job.get("script") or ""), plan.parent
    own = folder.parent == Path("reports") and folder.name in (Path(name).stem, name.rpartition(".")[2])
    out = {} if own or folder == Path() else {"--out": str(folder)}
    return out | ({str(name): str(value) for name, value in given.items()} if isinstance(given, Mapping) else {})


def script(report: Report) -> list[str]:
    """The script and its arguments as given, quoted for a shell."""
    module = ["-m"] if report.job.get("kind") == "module" else []
    name = str(report.job.get("script") or "SCRIPT")
    name = f"./{name}" if name.startswith("-") and not module else name  # no option
    return [_quote(part) for part in [*module, name, *listed(report, "argv")]]


def _quote(argument: object) -> str:
    return inert(visible(shlex.quote(str(argument))))
