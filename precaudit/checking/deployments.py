"""The plan to check, in its own formats or (for a smaller device) in another one, and what needs no run to be said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from precaudit.checking.records import Answer, CheckSettings, Deployment
from precaudit.finding import finding
from precaudit.formats import FORMATS, LOCAL_ERROR_LIMIT, ROUNDINGS
from precaudit.model import Finding, LossScale, Plan, Severity, Verdict
from precaudit.planning.loss_scale import DEFAULT_INTERVAL, DEFAULT_SCALE
from precaudit.tensorcores.peaks import Gpu
from precaudit.words import listing, plural

TORCHS = LossScale("dynamic", DEFAULT_SCALE, DEFAULT_INTERVAL)


def deployments(plan: Plan, settings: CheckSettings) -> tuple[Deployment, ...]:
    """One deployment for the plan as it is, or one for each requested format."""
    plans = {name: in_format(plan, name) for name in settings.formats} or {_main_format(plan): plan}
    return tuple(_deployment(name, each, settings.tolerance) for name, each in plans.items())


def in_format(plan: Plan, name: str) -> Plan:
    """The plan with another default format; exceptions from the default stay. float16 gets a loss scale, torch's
    default where the plan has none."""

    def moved(fqn: str, current: str) -> str:
        narrow = FORMATS[current].storage_bits <= 16
        return name if current == plan.default or (narrow and fqn not in plan.because) else current

    modules = {fqn: moved(fqn, current) for fqn, current in plan.modules.items()}
    unscaled = name == "float16" and plan.loss_scale.mode == "none"
    return replace(plan, default=name, modules=modules, loss_scale=TORCHS if unscaled else plan.loss_scale)


def formats_of(plan: Plan) -> tuple[str, ...]:
    """All formats in use, the coarsest first."""
    used = {*(plan.modules.values() or [plan.default]), *(op.format for op in plan.ops)}
    return tuple(sorted(used, key=lambda name: FORMATS[name].mantissa))


def _main_format(plan: Plan) -> str:
    """The plan's default, unless nothing runs in it."""
    used = formats_of(plan)
    return plan.default if plan.default in used else used[0]


def _deployment(name: str, plan: Plan, tolerance: float | None) -> Deployment:
    if tolerance is not None:
        return Deployment(name, plan, tolerance, "as --tolerance asks")
    return Deployment(name, plan, *default_tolerance(formats_of(plan)[0]))


def default_tolerance(name: str) -> tuple[float, str]:
    """The allowed relative rms error of outputs in a format, and the reason."""
    found = FORMATS[name]
    if found.tolerance >= LOCAL_ERROR_LIMIT:
        return found.tolerance, "an output that is off by more than a quarter of its rms is lost, in any format"
    roundoff = f"{found.epsilon / 2:.2g}"
    return found.tolerance, f"{ROUNDINGS} units of roundoff ({roundoff}) in {name}, the coarsest format of the plan"


# ---------------------------------------------------------------- whether the GPU has the plan's formats


def target(gpu: Gpu, deployment: Deployment) -> Answer:
    """The answer on the target. float32 runs anywhere; where there is no tf32, float32 takes its place, so only speed
    is lost."""
    used = [name for name in formats_of(deployment.plan) if name != "float32"]
    found = [_unsupported(gpu, deployment, name) for name in used if name not in gpu.formats]
    detail = f"{gpu.name} takes {listing(gpu.formats, 5)}; the plan uses {listing(used) or 'float32 only'}"
    return Answer("target", detail, tuple(found), format=deployment.format)


def _unsupported(gpu: Gpu, deployment: Deployment, name: str) -> Finding:
    modules = [fqn for fqn, format_name in deployment.plan.modules.items() if format_name == name]
    places = (
        f"{plural(len(modules), 'module')} ({listing(fqn or 'the model itself' for fqn in modules)})"
        if modules
        else "operations"
    )
    if name == "tf32":
        return finding(
            "PA722",
            "warning",
            f"{gpu.name} has no tf32: {places} of the plan would run in float32, slower than planned",
            f"nothing breaks; profile with --target {gpu.key} for a plan that uses what it has",
            format=name,
        )
    instead = next((other for other in ("bfloat16", "float16") if other in gpu.formats), None)
    try_ = f"check the plan in {instead}: precaudit check --formats {instead}, or " if instead else ""
    return finding(
        "PA721",
        "error",
        f"{gpu.name} has no {name}, in which the plan has {places}",
        f"{try_}profile again with --target {gpu.key}",
        format=name,
        supported=list(gpu.formats),
    )


# ---------------------------------------------------------------- what the profile that made the plan said of it


PROFILE = "profile the script again, and deploy a plan that is VERIFIED"
_SAID: Mapping[Verdict, tuple[Severity, str, str]] = {
    "fail": (
        "error",
        "this plan was tried and is NOT VERIFIED: training with it was not as good as float32",
        f"{PROFILE}; the report beside the plan says what went wrong",
    ),
    "inconclusive": (
        "warning",
        "this plan was tried, and whether training with it is as good as float32 was NOT DECIDED",
        f"the report beside the plan says why; {PROFILE}",
    ),
    "screened": ("note", "this plan was screened by one pair of runs (--quick), not verified", PROFILE),
    "not_run": ("note", "no training was run with this plan: nothing has verified it", PROFILE),
}


def verified(plan: Plan, wanted: Sequence[Deployment]) -> tuple[Answer, ...]:
    """No answer for plans that don't tell, such as those written by hand, and for float32, which needs no proof."""
    if plan.verdict is None or not plan.is_low_precision:
        return ()
    found = [*_found(plan), *_elsewhere(plan, wanted)]
    return (Answer("verification", f"the profile's verdict on this plan was {plan.verdict}", tuple(found)),)


def _found(plan: Plan) -> list[Finding]:
    if plan.is_edited:
        message = (
            "this plan was changed since its profile: the verdict is on what it was, and nothing has verified it now"
        )
        return [finding("PA761", "warning", message, PROFILE, verdict=plan.verdict)]
    said = _SAID.get(plan.verdict) if plan.verdict else None
    return [finding("PA761", *said, verdict=plan.verdict)] if said else []


def _elsewhere(plan: Plan, wanted: Sequence[Deployment]) -> Iterator[Finding]:
    """A verdict is no word on the formats of --formats, and one on another plan no word at all."""
    others = [each.format for each in wanted if each.plan.modules != plan.modules]
    if others and plan.verdict == "pass" and not plan.is_edited:
        message = f"the profile verified this plan as it is; in {listing(others)} nothing has verified it"
        remedy = "profile the script with these --formats for a plan that is verified in one of them"
        yield finding("PA761", "note", message, remedy, verdict=plan.verdict, formats=others)
