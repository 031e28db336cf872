"""CUDA's half kernels on a machine without them: half tensors stay half, and an operation rounds where CUDA's does."""

from __future__ import annotations

from typing import Any

import torch

from precaudit.execution.atomics import added_one_by_one, are_half
from precaudit.execution.rounding import HALVES
from precaudit.instrument.torch_function import Call, OperationMode, map_tensors, tensors_in

DRAWING = frozenset("randn rand randn_like rand_like normal uniform log_normal cauchy exponential".split())
_UNIFORM = frozenset("rand rand_like uniform".split())
_COMPUTED_IN_HALF = frozenset(
    "grid_sampler col2im im2col avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool3d instance_norm dropout "
    "native_dropout".split()
)
"""Operations whose CPU kernels compute in half, forward or backward, where CUDA's do so in float32 and round once. In
half, dropout's factor of 1 / 0.9 is off by a sixth of a per cent in bfloat16; in place it is so on CUDA, too."""


def to_float32(value: Any) -> Any:
    """`value` with half tensors as float32."""
    return map_tensors(lambda t: t.float() if t.dtype in HALVES else t, value)


def as_on_cuda(call: Call) -> Any:
    """Run the operation as it is, in place included: autocast's lists have out-of-place functions only. Without a half
    kernel on this device (as for `torch.linalg` on all), or with an inexact one, it runs in float32 and is rounded to
    the input's half format."""
    in_half = _rounds_its_constant(call) or (call.op in _COMPUTED_IN_HALF and not call.writes)
    if in_half and are_half(call.given):
        return _through_float32(call)
    try:
        return added_one_by_one(call)()
    except (NotImplementedError, RuntimeError) as error:
        lacks_kernel = "not implemented for" in str(error) and first_half(call.args) is not None
        if not lacks_kernel or call.op.startswith("linalg_"):
            raise
        return _through_float32(call)


def _rounds_its_constant(call: Call) -> bool:
    """Whether it adds a number that half doesn't hold, which the CPU's kernel rounds first, and CUDA's does not."""
    numbers = [value for value in call.args if isinstance(value, (int, float))] if call.op in ("add", "sub") else []
    dtype = first_half(call.args) if numbers else None
    return dtype is not None and any(float(torch.tensor(number, dtype=dtype)) != number for number in numbers)


def _through_float32(call: Call) -> Any:
    """Run the operation in float32, and round to the input's half format."""
    dtype = first_half(call.args)
    wide = to_float32(call)
    result = wide()
    if call.writes:
        return call.target.copy_(result)
    for own, copied in zip(call.given, wide.given, strict=True):
        if own is not copied and copied._version:  # running statistics
            own.copy_(copied)
    if wide.args and result is wide.args[0]:  # what does nothing, like dropout in eval mode, returns its input itself
        return call.args[0]
    return map_tensors(lambda t: t.to(dtype) if t.dtype == torch.float32 else t, result)


def drawn(call: Call) -> Any:
    """Random numbers are drawn in float32 and then rounded, so that runs in every format draw the same ones."""
    dtype = call.kwargs.get("dtype") or first_half(call.args)
    if dtype not in HALVES:
        return call()
    wide = call._replace(kwargs={**call.kwargs, "dtype": torch.float32}) if "dtype" in call.kwargs else call
    numbers = to_float32(wide)().to(dtype)
    if call.op in _UNIFORM:
        low, high = _bounds(call)
        numbers = numbers.masked_fill(numbers == high, low)
    return call.args[0].copy_(numbers) if call.writes else numbers


def _bounds(call: Call) -> tuple[float, float]:
    """The bounds of uniform random numbers. CUDA's kernel returns the lower one where rounding reaches the upper
    one."""
    given = {**dict(zip(("from", "to"), call.args[1:], strict=False)), **call.kwargs} if call.op == "uniform" else {}
    return given.get("from", 0.0), given.get("to", 1.0)


def first_half(value: Any) -> torch.dtype | None:
    return next((tensor.dtype for tensor in tensors_in(value) if tensor.dtype in HALVES), None)


class HalfKernels(OperationMode):
    """Runs operations on half tensors, which a script makes by itself, as CUDA's kernels would, and all others as they
    are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_low(args, kwargs):
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)

    def operation(self, call: Call) -> Any:
        return in_own_dtype(call)


def is_low(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call is given half tensors, or asked for one."""
    return kwargs.get("dtype") in HALVES or first_half((args, kwargs)) is not None


def is_read(op: str) -> bool:
    """Whether it takes tensors as they are: `autograd.grad` needs the graph's own ones, not copies."""
    return op.startswith("__get") or op == "grad"


def in_own_dtype(call: Call) -> Any:
    """An operation outside of autocast, in the dtype of its inputs."""
    if is_read(call.op):
        return call()
    return drawn(call) if call.op in DRAWING else as_on_cuda(call)
