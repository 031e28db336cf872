"""Emulated mixed precision: CUDA autocast's rounding points on a machine without the hardware.

Values live in real half tensors where CUDA autocast would have them; products are computed in float32 on
the rounded operands and rounded once. Forward rounding is done by a `TorchFunctionMode`; backward rounding
follows from autograd through the casts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from precaudit.execution import float8
from precaudit.execution.atomics import SUMS, not_in_place
from precaudit.execution.attention import keeping_rounded
from precaudit.execution.cells import cell
from precaudit.execution.chains import chained
from precaudit.execution.cross_entropy import logarithms_rounded
from precaudit.execution.formats import FLOAT32, WIDE, PlanExecution, ScopeFormat, every_model, no_disabled_region
from precaudit.execution.kernels import DRAWING, as_on_cuda, drawn, first_half, is_read, to_float32
from precaudit.execution.libraries import own_region
from precaudit.execution.policy import ADDENDS, CONVOLUTIONS, MASKED, category
from precaudit.execution.rounding import CASTABLE, HALF_DTYPES, HALVES, ROUNDINGS, Rounding, replaced, rounding_for
from precaudit.instrument.functions import AROUND_BACKWARD
from precaudit.instrument.names import callers
from precaudit.instrument.patches import Shared, all_wrapped, set_to
from precaudit.instrument.scopes import PLANNED, Frame, Scopes
from precaudit.instrument.torch_function import Call, OperationMode, map_tensors, tensors_in
from precaudit.model import Plan


def in_float32(call: Call) -> Any:
    """Run an operation in float32: half inputs are widened, and an explicit half dtype is ignored."""
    if call.op in ("half", "bfloat16") and call.args and isinstance(call.args[0], torch.Tensor):
        return call.args[0].float()
    if call.op == "view" and _asks_for_dtype(call):
        return to_float32(call())  # views the same bits as another dtype

    def wide(value: Any) -> Any:
        return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else to_float32(value)

    return call.func(*map(wide, call.args), **{key: wide(value) for key, value in call.kwargs.items()})


def written(call: Call) -> Any:
    """Run an in-place operation in float32: its inputs take the dtype of its target. Index sums accumulate in
    float32."""
    target = call.target
    if not isinstance(target, torch.Tensor) or target.dtype not in CASTABLE:
        return call()
    if call.op in SUMS and target.dtype in HALVES and "out" not in call.kwargs:
        return target.copy_(to_float32(not_in_place(call))())
    return map_tensors(lambda t: t.to(target.dtype) if t.dtype in CASTABLE and t is not target else t, call)()


class EmulatedMode(OperationMode):
    """Runs every operation of the current scope in the format that the plan gives it."""

    __torch_function__ = torch.compiler.disable(OperationMode.__torch_function__)

    def __init__(
        self,
        scope_format: Callable[[], ScopeFormat],
        cast_cache: Callable[[], dict[Any, Any]],
        exact: bool = True,
        in_disabled_region: Callable[[], bool] = no_disabled_region,
    ) -> None:
        """`exact` says whether the backward pass of float32 products is in float32 too."""
        super().__init__()
        self._scope_format = scope_format
        self._cast_cache = cast_cache
        self._exact = exact
        self._in_disabled_region = in_disabled_region

    def whole(self, op: str) -> bool:
        return category(op) == "banned"

    def operation(self, call: Call) -> Any:
        op = call.op
        if is_read(op):
            return call()
        scope = self._scope_format()
        rounding = rounding_for(scope.of(op), op)
        half = rounding is not None and rounding.dtype in HALVES
        if op in DRAWING and (half or call.writes):
            return drawn(call)
        if half and self._in_disabled_region():
            return self._in_its_own(call)
        if call.writes:
            return as_on_cuda(call) if half else written(call)
        if rounding is None and category(op) == "lower" and not self._exact:
            return _back_in_tf32(call)
        if rounding is None or not (half or category(op) == "lower"):
            return in_float32(call)
        stored = partial(self._stored, rounding.dtype)
        if float8.applies(call, scope.of(op)):
            call = map_tensors(stored, call)
            return float8.linear(*call.args, **call.kwargs, forward=scope.of(op), by_row=scope.by_row)
        return run_in_format(call, rounding, stored)

    def _in_its_own(self, call: Call) -> Any:
        """Run an operation where autocast is disabled: in the dtype of its inputs, which are the script's
        responsibility."""
        if category(call.op) == "lower" and not self._exact and first_half(call) is None:
            return _back_in_tf32(call)
        return as_on_cuda(call)

    def _stored(self, dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        """The cast of a parameter, once per model call like autocast's cache, so that shared uses sum gradients in
        half."""
        if dtype not in HALVES or not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32):
            return tensor
        cache = self._cast_cache()
        key = (id(tensor), dtype, torch.is_grad_enabled())
        if key not in cache:
            cache[key] = (tensor, tensor.to(dtype))
        return cache[key][1]


def _back_in_tf32(call: Call) -> Any:
    """A float32 product with a tf32 backward pass: one setting applies to a whole backward pass."""
    if not torch.is_grad_enabled():
        return in_float32(call)
    gpus = {t.device.index for t in call.given if t.device.type == "cuda"}
    # Dropout drops the same values both times.
    with torch.no_grad(), torch.random.fork_rng(devices=list(gpus)):
        exact = iter(tensors_in(in_float32(call)))
    rough = run_in_format(to_float32(call), ROUNDINGS["tf32"])
    return map_tensors(lambda tensor: replaced(tensor, next(exact)), rough)


def run_in_format(
    call: Call, rounding: Rounding, stored: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
) -> Any:
    """Run one operation as CUDA autocast would in the format of `rounding`.

    `stored` maps an argument of a product to the tensor that is rounded in its place.
    """
    kind = category(call.op)
    if kind == "banned" and rounding.dtype in HALVES:
        raise RuntimeError(f"torch.nn.functional.{call.op} and torch.nn.BCELoss are unsafe to autocast.")
    if kind == "lower":
        return _lower(call, rounding, stored)
    if kind == "fp32" and _asks_for_dtype(call):
        return as_on_cuda(call)  # autocast runs these in float32 by setting the omitted dtype
    if kind == "fp32" or (kind == "promote" and any(t.dtype == torch.float32 for t in call.given)):
        with logarithms_rounded(call):
            return to_float32(call)()
    if region := own_region(call, rounding.dtype):
        with region:
            return call()
    return as_on_cuda(call)


def _lower(call: Call, rounding: Rounding, stored: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A product, or what torch makes of several."""

    def multiply(function: Callable[..., Any], factors: tuple[Any, ...]) -> Any:
        return _product(Call(function, factors, {}), rounding, stored)

    half = rounding.dtype in HALVES
    if (chain := chained(call, multiply)) is not None:
        return chain
    if half and (state := cell(call, multiply, lambda t: rounding.addend(stored(t)))) is not None:
        return map_tensors(rounding.result, state)
    return (_convolution if half and call.op in CONVOLUTIONS else _product)(call, rounding, stored)


def _product(call: Call, rounding: Rounding, stored: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The float32 product of rounded factors, rounded."""

    def entering(convert: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
        return map_tensors(lambda t: convert(stored(t)) if t.dtype in CASTABLE else t, value)

    position, keyword = ADDENDS.get(call.op, (None, None))
    factors = Call(
        call.func,
        tuple(entering(rounding.addend if i == position else rounding.operand, arg) for i, arg in enumerate(call.args)),
        {k: entering(rounding.addend if k == keyword else rounding.operand, v) for k, v in call.kwargs.items()},
    )
    fused = call.op in MASKED and rounding.dtype in HALVES
    result = keeping_rounded(factors, rounding.dtype) if fused else factors()
    return map_tensors(lambda t: rounding.result(t) if t.dtype == torch.float32 else t, result)


def _convolution(call: Call, rounding: Rounding, stored: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The rounded convolution, to which the bias is added in half."""
    position, keyword = ADDENDS[call.op]
    bias = call.args[position] if len(call.args) > position else call.kwargs.get(keyword)
    args = tuple(None if i == position else arg for i, arg in enumerate(call.args))
    kwargs = {key: value for key, value in call.kwargs.items() if key != keyword}
    result = _product(call._replace(args=args, kwargs=kwargs), rounding, stored)
    if bias is None:
        return result
    spatial = [1] * int(call.op[-2])  # conv2d, conv_transpose2d: 2
    return result + stored(bias).to(result.dtype).reshape(-1, *spatial)


def _asks_for_dtype(call: Call) -> bool:
    return any(isinstance(value, torch.dtype) for value in (*call.args, *call.kwargs.values()))


class _Answers(threading.local):
    """What one thread is told about autocast; None for what torch itself answers."""

    answers: tuple[Callable[[], bool], Callable[[], torch.dtype | None]] | None = None


class _AutocastAsked:
    """Overrides torch's queries about autocast while a thread needs it, and answers per thread: the dtype in force, and
    whether any autocast is active, which recurrent layers ask before they accept an input of another dtype than their
    weights."""

    def __init__(self) -> None:
        self._here = _Answers()
        self._overridden = Shared(self._overrides)
        self.really: Callable[[], bool] = torch._C._is_any_autocast_enabled
        """Whether an autocast region of torch is active."""

    @contextmanager
    def by(self, active: Callable[[], bool], dtype: Callable[[], torch.dtype | None]) -> Iterator[None]:
        """Answer so in this thread; torch itself answers where `dtype` is None."""
        with self._overridden, set_to(self._here, "answers", (active, dtype)):
            yield

    def _active(self, original: Callable[[], bool]) -> bool:
        return self._here.answers[0]() if self._here.answers else original()

    def _enabled(self, original: Callable[..., bool], *device: str) -> bool:
        return self._dtype(lambda: None) is not None or original(*device)

    def _dtype(self, original: Callable[..., Any], *device: str) -> Any:
        return (self._here.answers and self._here.answers[1]()) or original(*device)

    def _overrides(self) -> AbstractContextManager[None]:
        return all_wrapped(
            (torch._C, "_is_any_autocast_enabled", self._active),
            (torch, "is_autocast_enabled", self._enabled),
            (torch, "is_autocast_cpu_enabled", self._enabled),
            (torch, "get_autocast_dtype", self._dtype),
            (torch, "get_autocast_gpu_dtype", self._dtype),
        )


autocast_asked = _AutocastAsked()


def _asked_by_torch() -> bool:
    """Whether torch or precaudit itself asks about autocast."""
    modules = (frame.f_globals.get("__name__", "") for frame in callers())
    asker = next(name for name in modules if name not in (__name__, all_wrapped.__module__, callers.__module__))
    return asker.partition(".")[0] in ("torch", "precaudit")


class Emulator(PlanExecution):
    """Emulates the plan inside models' forward passes, and returns float32 to the script."""

    def __init__(
        self,
        plan: Plan,
        scopes: Scopes,
        covers: Callable[[torch.nn.Module], bool] = every_model,
        in_disabled_region: Callable[[], bool] = no_disabled_region,
    ) -> None:
        super().__init__(plan, scopes, covers, in_disabled_region)
        self._exact = plan.matmul_precision == "highest"
        self._mode = EmulatedMode(self._scope_format, self._cast_cache, self._exact, in_disabled_region)

    def entered(self, frame: Frame) -> None:
        root = frame.root.data
        root.setdefault("casts", {})
        if self._begins(frame):
            root[AROUND_BACKWARD] = self._around_backward
            frame.data["leave"] = stack = ExitStack()
            stack.enter_context(autocast_asked.by(lambda: not self._in_disabled_region(), self._told_the_script))
            stack.enter_context(self._mode)
        if root.get(PLANNED):
            frame.data["format"] = self._format_in(frame)

    def left(self, frame: Frame, output: Any) -> Any:
        if "leave" not in frame.data:
            return output
        frame.data["leave"].close()
        root = frame.root.data
        del root[PLANNED], root[AROUND_BACKWARD]
        root["casts"].clear()
        return to_float32(output)

    def _told_the_script(self) -> torch.dtype | None:
        """The dtype of autocast here, for code that asks; torch's own would open regions of autocast by it."""
        default = self._scope_format().default
        low = default not in WIDE and not self._in_disabled_region() and not _asked_by_torch()
        return HALF_DTYPES.get(default, torch.bfloat16) if low else None

    def _around_backward(self, frame: Frame) -> EmulatedMode:
        scope, disabled = frame.data["format"], self._in_disabled_region()
        return EmulatedMode(lambda: scope, dict, self._exact, lambda: disabled)

    def _scope_format(self) -> ScopeFormat:
        frame = self._scopes.current
        if frame is None:
            return FLOAT32
        format_found: ScopeFormat = frame.data.get("format", FLOAT32)
        return format_found

    def _cast_cache(self) -> dict[Any, Any]:
        frame = self._scopes.current
        casts: dict[Any, Any] = frame.root.data["casts"] if frame is not None else {}
        return casts
