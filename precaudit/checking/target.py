"""Checks whether the GPU has the plan's formats."""

from __future__ import annotations

from precaudit.checking.deployments import formats_of
from precaudit.checking.records import Answer, Deployment
from precaudit.finding import finding
from precaudit.formats import HALF_FORMATS
from precaudit.hardware.peaks import Gpu
from precaudit.model import Finding
from precaudit.words import listing, plural


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
    instead = next((other for other in HALF_FORMATS if other in gpu.formats), None)
    try_ = f"check the plan in {instead}: precaudit check --formats {instead}, or " if instead else ""
    return finding(
        "PA721",
        "error",
        f"{gpu.name} has no {name}, in which the plan has {places}",
        f"{try_}profile again with --target {gpu.key}",
        format=name,
        supported=list(gpu.formats),
    )
