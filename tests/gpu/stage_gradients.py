"""Errors of gradients against float32: native autocast beside precaudit's emulation of it, on the same weights.

`ratio` is the emulated error's size over the native one's, `correlation` the cosine between the two errors: kernels sum
in an order of their own, which turns some roundings the other way, so that it stays below 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stage import Setting, main
from torch import Tensor, nn
from torch.nn import functional as F

import precaudit

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bench_tracing import GPT

TOLERANCE = 0.2
FORMATS = ("bfloat16", "float16", "float8_e4m3")


def measure(setting: Setting) -> dict[str, Any]:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    models: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"gpt": lambda: _gpt(setting), "cnn": _cnn}
    found = {name: {f: _errors(build, f, setting) for f in FORMATS} for name, build in models.items()}
    apart = [
        f"{name} in {format_name}: emulated gradients err {errors['ratio']} times as much as native ones"
        for name, formats in found.items()
        for format_name, errors in formats.items()
        if not setting.dry and (errors["ratio"] is None or abs(errors["ratio"] - 1) > TOLERANCE)
    ]
    return {**found, "failures": apart}


def _gpt(setting: Setting) -> tuple[nn.Module, Tensor]:
    return GPT(setting.size(4, 1), 64, 2, 64), torch.randint(64, (4, 16))


def _cnn() -> tuple[nn.Module, Tensor]:
    body = [nn.Conv2d(8, 16, 3), nn.GroupNorm(4, 16), nn.GELU(), nn.Conv2d(16, 16, 3), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16 * 144, 64)), torch.randn(4, 8, 16, 16)


def _errors(build: Callable[[], tuple[nn.Module, Tensor]], format_name: str, setting: Setting) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = build()
    model, inputs = model.to(setting.device), inputs.to(setting.device)
    exact = _gradients(model, inputs)
    plan = precaudit.Plan(default=format_name, modules={fqn: format_name for fqn, _ in model.named_modules()})
    found = {}
    for execution in ("native", "emulated"):
        with precaudit.apply(model, plan, execution=execution):
            found[execution] = _gradients(model, inputs)
    errors = {
        execution: [g - e for g, e in zip(gradients, exact, strict=True)] for execution, gradients in found.items()
    }
    sizes = {name: _norm(error) / _norm(exact) for name, error in errors.items()}
    products = sum(float((a * b).sum()) for a, b in zip(errors["native"], errors["emulated"], strict=True))
    scale = _norm(errors["native"]) * _norm(errors["emulated"])
    ratio = sizes["emulated"] / sizes["native"] if sizes["native"] else None
    return {**sizes, "ratio": ratio, "correlation": products / scale if scale else None}


def _gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    output = model(inputs).float().flatten(0, -2)
    F.cross_entropy(output, torch.arange(len(output), device=output.device) % output.shape[1]).backward()
    return [p.grad.double() for p in model.parameters() if p.grad is not None]


def _norm(these: list[Tensor]) -> float:
    return float(sum(t.square().sum() for t in these)) ** 0.5


if __name__ == "__main__":
    sys.exit(main("gradients", measure))
