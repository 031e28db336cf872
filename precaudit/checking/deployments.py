"""The plan to check: in its own formats or, for a smaller device, in another one; with its tolerance."""

from __future__ import annotations

from dataclasses import replace

from precaudit.checking.records import CheckSettings, Deployment
from precaudit.formats import FORMATS, LOCAL_ERROR_LIMIT, ROUNDINGS
from precaudit.model import LossScale, Plan
from precaudit.model.plan import DEFAULT_INTERVAL, DEFAULT_SCALE

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
