"""The loops that precaudit supplies to a model file, and what it expects of the file's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from itertools import islice
from typing import Any
from weakref import ref

import torch
from torch import nn

from precaudit.errors import ExitCode, PrecauditError
from precaudit.running.modes import to_eval

Functions = Mapping[str, Any]


def train(functions: Functions, device: str | None) -> None:
    """Train until the monitor stops the run, or until there are no more batches."""
    device = device or _best_device()
    loss = _function(functions, "loss", "model", "batch")
    model = _model(functions, device)
    optimizer = _optimizer(functions, model)
    for batch in _nonempty(_endless(functions)):
        optimizer.zero_grad()
        _differentiable(loss(model, move(batch, device))).backward()
        optimizer.step()


def infer(functions: Functions, device: str | None, count: int) -> None:
    """Run `count` forward passes in eval mode.

    `loss(model, batch)`, if defined, feeds the batch to the model; otherwise the batch is the model's arguments.
    """
    device = device or _best_device()
    forward = _function(functions, "loss", "model", "batch") if functions.get("loss") else _call
    model = to_eval(_model(functions, device))
    for batch in islice(_nonempty(_epoch(functions)), count):
        forward(model, move(batch, device))


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


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------- what the functions must be, and must return


def _function(functions: Functions, name: str, *arguments: str) -> Callable[..., Any]:
    """The function called `name`; an error where it can't be called with these arguments."""
    call, function = f"{name}({', '.join(arguments)})", functions.get(name)
    if not callable(function):
        raise _invalid(f"{call} must be a function, but it is {_described(function)}")
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return function  # builtins have no signature
    except TypeError as error:
        raise _invalid(f"{name} is called as {call}, but it is {name}{inspect.signature(function)}: {error}") from None
    return function


def _model(functions: Functions, device: str) -> nn.Module:
    if isinstance(functions.get("build_model"), nn.Module):
        raise _invalid(
            "build_model must be a function that returns a new model for each run, but it is a model already: "
            "pass a function that returns a new one"
        )
    model = _function(functions, "build_model")()
    if not isinstance(model, nn.Module):
        raise _invalid(f"build_model() must return a torch.nn.Module, but it returned {_described(model)}")
    return model.to(device)


def checked_new(build_model: Any) -> Any:
    """`build_model`, with an error where it returns a model that an earlier run has trained."""
    if not callable(build_model) or isinstance(build_model, nn.Module):
        return build_model
    earlier: list[ref[nn.Module]] = []

    def build() -> Any:
        model = build_model()
        if any(each() is model for each in earlier):
            raise _invalid(
                "build_model() must return a new model for each run, but it returned the one of the run before, which "
                "is trained by now: build it inside, or return a copy.deepcopy of it"
            )
        if isinstance(model, nn.Module):
            earlier.append(ref(model))
        return model

    return update_wrapper(build, build_model, updated=())


def _optimizer(functions: Functions, model: nn.Module) -> Any:
    if functions.get("build_optimizer") is None:
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = _function(functions, "build_optimizer", "model")(model)
    if not callable(getattr(optimizer, "step", None)) or not callable(getattr(optimizer, "zero_grad", None)):
        raise _invalid(
            "build_optimizer(model) must return one optimizer, with step() and zero_grad(), "
            f"but it returned {_described(optimizer)}"
        )
    return optimizer


def _differentiable(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad:
        return value
    found = _described(value)
    if isinstance(value, torch.Tensor):
        found = f"one of shape {tuple(value.shape)}" if value.numel() != 1 else "one without a gradient"
    raise _invalid(f"loss(model, batch) must return a scalar tensor to call .backward() on, but it returned {found}")


def _endless(functions: Functions) -> Iterator[Any]:
    """Epoch after epoch, until one is empty, as a one-shot iterator's second epoch is."""
    exhausted = False
    while not exhausted:
        exhausted = True
        for batch in _epoch(functions):
            exhausted = False
            yield batch


def _epoch(functions: Functions) -> Iterable[Any]:
    batches: Any = functions.get("batches")
    if callable(batches):
        batches = _function(functions, "batches")()
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise _invalid(f"batches() must return an iterable of batches, but it returned {_described(batches)}")
    return batches


def _nonempty(batches: Iterable[Any]) -> Iterator[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise PrecauditError(
            "batches() yielded no batch: there is nothing to train on; each call has to begin anew",
            ExitCode.NOTHING_TO_MEASURE,
        )


def _invalid(message: str) -> PrecauditError:
    return PrecauditError(message, ExitCode.SCRIPT_FAILED)


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# ---------------------------------------------------------------- models without a loss


def _call(model: nn.Module, batch: Any) -> Any:
    """Call the model with `batch` as its arguments, without trailing items (labels) that its forward doesn't take."""
    if isinstance(batch, Mapping):
        return model(**batch)
    inputs = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    return model(*inputs[: _accepted(model, inputs)])


def _accepted(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    schema = getattr(model.forward, "schema", None)  # TorchScript's, which has no signature
    if schema is not None:
        return min(len(inputs), len(schema.arguments) - 1)
    signature = inspect.signature(model.forward)
    for count in range(len(inputs), 1, -1):
        try:
            signature.bind(*inputs[:count])
        except TypeError:
            continue
        return count
    return 1
