"""Emulated mixed precision: CUDA autocast's rounding points on a machine without the hardware.

Values live in real half tensors where CUDA autocast would have them; products are computed in float32 on
the rounded operands and rounded once. Forward rounding is done by a `TorchFunctionMode`; backward rounding
follows from autograd through the casts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from precaudit.execution.formats import FLOAT32, PlanLookup, ScopeFormat
from precaudit.execution.policy import category
from precaudit.execution.rounding import CASTABLE, Rounding, rounding_for
from precaudit.instrument.scopes import Frame, Scopes
from precaudit.instrument.torchfunction import OperationMode, map_tensors, tensors_in
from precaudit.model import Plan

_HALVES = (torch.float16, torch.bfloat16)


def to_float32(value: Any) -> Any:
    """Half tensors in `value` as float32; everything else as it is."""
    return map_tensors(lambda t: t.float() if t.dtype in _HALVES else t, value)


class EmulatedMode(OperationMode):
    """Runs every operation of the current scope under the format that the plan gives it."""

    def __init__(self, scope_format: Callable[[], ScopeFormat], cast_cache: Callable[[], dict[Any, Any]]) -> None:
        super().__init__()
        self._scope_format = scope_format
        self._cast_cache = cast_cache

    def whole(self, op: str) -> bool:
        return category(op) == "banned"

    def operation(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        if op.startswith("__get"):
            return func(*args, **kwargs)
        scope = self._scope_format()
        rounding = rounding_for(scope.of(op))
        if rounding is None:
            return func(*to_float32(args), **to_float32(kwargs))
        operand = partial(self._operand, rounding)
        return run_in_format(op, rounding, func, args, kwargs, operand)

    def _operand(self, rounding: Rounding, tensor: torch.Tensor) -> torch.Tensor:
        """Parameters are cast once a model call, as autocast's cache does, so shared uses sum gradients in half."""
        if tensor.dtype not in CASTABLE:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32):
            return rounding.operand(tensor)
        if rounding.dtype not in _HALVES:
            return rounding.operand(tensor)
        cache = self._cast_cache()
        key = (id(tensor), id(rounding), torch.is_grad_enabled())
        if key not in cache:
            cache[key] = (tensor, tensor.to(rounding.dtype))
        return rounding.operand(cache[key][1])


def run_in_format(
    op: str, rounding: Rounding, func: Any, args: Any, kwargs: Any, operand: Callable[..., Any] | None = None
) -> Any:
    """One operation as CUDA autocast would run it in the format of `rounding`.

    `operand` replaces how tensors enter a product (the default rounds each of them anew).
    """
    kind = category(op)
    if kind == "banned" and rounding.dtype in _HALVES:
        raise RuntimeError(f"torch.nn.functional.{op} and torch.nn.BCELoss are unsafe to autocast.")
    if kind == "lower":
        enter = operand or (lambda t: rounding.operand(t) if t.dtype in CASTABLE else t)
        result = func(*map_tensors(enter, args), **map_tensors(enter, kwargs))
        return map_tensors(lambda t: rounding.result(t) if t.dtype == torch.float32 else t, result)
    if kind == "fp32":
        return func(*to_float32(args), **to_float32(kwargs))
    return _with_fallback(func, args, kwargs)


def _with_fallback(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation without a half kernel on this device runs in float32 and is rounded to the input's half."""
    try:
        return func(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        dtype = _first_half(args)
        if "not implemented for" not in str(error) or dtype is None:
            raise
        result = func(*to_float32(args), **to_float32(kwargs))
        return map_tensors(lambda t: t.to(dtype) if t.dtype == torch.float32 else t, result)


def _first_half(value: Any) -> torch.dtype | None:
    return next((tensor.dtype for tensor in tensors_in(value) if tensor.dtype in _HALVES), None)


class Emulator:
    """A scope listener: emulates the plan inside models' forwards and hands float32 back to the script.

    `covers` says whether a model (its outermost running module) is the plan's business; `in_island` whether
    the script has opened an autocast region with `enabled=False` of its own.
    """

    def __init__(
        self,
        plan: Plan,
        scopes: Scopes,
        covers: Callable[[torch.nn.Module], bool] = lambda module: True,
        in_island: Callable[[], bool] = lambda: False,
    ) -> None:
        self._lookup = PlanLookup(plan)
        self._scopes = scopes
        self._covers = covers
        self._in_island = in_island
        self._mode = EmulatedMode(self._scope_format, self._cast_cache)

    def entered(self, frame: Frame) -> None:
        if frame.is_outermost:
            frame.data["emulated"] = self._covers(frame.module)
            frame.data["casts"] = {}
            if frame.data["emulated"]:
                self._mode.__enter__()
        if frame.root.data["emulated"]:
            frame.data["format"] = self._lookup.of(frame.name)

    def left(self, frame: Frame, output: Any) -> Any:
        if not frame.is_outermost or not frame.data["emulated"]:
            return output
        self._mode.__exit__(None, None, None)
        frame.data["casts"].clear()
        return to_float32(output)

    def _scope_format(self) -> ScopeFormat:
        frame = self._scopes.current
        if frame is None or self._in_island():
            return FLOAT32
        format_found: ScopeFormat = frame.data.get("format", FLOAT32)
        return format_found

    def _cast_cache(self) -> dict[Any, Any]:
        frame = self._scopes.current
        casts: dict[Any, Any] = frame.root.data["casts"] if frame is not None else {}
        return casts
