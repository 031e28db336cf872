"""Running a person's code as Python itself would: `__main__`, `sys.argv`, `sys.path[0]`, working directory."""

from __future__ import annotations

import inspect
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from precaudit.errors import ExitCode, PrecauditError
from precaudit.running.job import Job


def run_job(job: Job) -> None:
    """Run the job's code to its end in this process; whatever it raises passes through."""
    os.chdir(job.cwd)
    if job.kind == "module":
        sys.argv = [job.target, *job.argv]
        sys.path.insert(0, job.cwd)
        runpy.run_module(job.target, run_name="__main__", alter_sys=True)
        return
    sys.argv = [job.target, *job.argv]
    sys.path.insert(0, str(Path(job.target).resolve().parent))
    name = "__main__" if job.kind == "script" else "precaudit_model_file"
    namespace = _run_file(job.target, name, asserts=job.asserts)
    if job.kind == "model_file":
        train(namespace, job.device)
    elif job.kind == "inference":
        infer(namespace, job.device, job.steps)


def _run_file(path: str, name: str, asserts: bool) -> dict[str, Any]:
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    code = compile(Path(path).read_bytes(), path, "exec", optimize=-1 if asserts else 1)
    exec(code, module.__dict__)
    return module.__dict__


def move(value: Any, device: str) -> Any:
    """A batch on another device: tensors in nested lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [move(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def train(functions: dict[str, Any], device: str | None) -> None:
    """The loop that precaudit supplies to a model file; it ends when the monitor has seen enough steps."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = functions["build_model"]().to(device)
    build_optimizer: Callable[[Any], Any] = functions.get("build_optimizer") or _default_optimizer
    optimizer = build_optimizer(model)
    while True:
        for batch in _some_batches(functions["batches"]()):
            optimizer.zero_grad()
            functions["loss"](model, move(batch, device)).backward()
            optimizer.step()


def infer(functions: dict[str, Any], device: str | None, count: int) -> None:
    """The loop that precaudit supplies to a model file that is not to be trained: forward passes in eval mode.

    `loss(model, batch)` knows how a batch enters the model; without it a batch is the model's arguments.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = functions["build_model"]().to(device).eval()
    forward: Callable[[Any, Any], Any] = functions.get("loss") or _call
    for batch in islice(_some_batches(functions["batches"]()), count):
        forward(model, move(batch, device))


def _call(model: torch.nn.Module, batch: Any) -> Any:
    """`batch` as the model's arguments; what follows those that its forward takes (labels, say) is left out."""
    if isinstance(batch, Mapping):
        return model(**batch)
    inputs = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    return model(*inputs[: _accepted(model, inputs)])


def _accepted(model: torch.nn.Module, inputs: tuple[Any, ...]) -> int:
    signature = inspect.signature(model.forward)
    for count in range(len(inputs), 1, -1):
        try:
            signature.bind(*inputs[:count])
        except TypeError:
            continue
        return count
    return 1


def _default_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def _some_batches(batches: Iterable[Any]) -> Iterable[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise PrecauditError("batches() yielded no batch: there is nothing to train on", ExitCode.NOTHING_TO_MEASURE)
