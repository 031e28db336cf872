"""Native mixed precision: torch.autocast on the device, switched at the modules where a plan changes format.

Forward products of tf32 modules run as TF32 and those of float32 modules don't; the backward pass of all modules
follows the plan's `matmul_precision`, which the caller sets with `products.tf32`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch

from precaudit.execution import float8
from precaudit.execution.emulated import Emulator, in_float32, written
from precaudit.execution.formats import WIDE, PlanExecution, ScopeFormat
from precaudit.execution.kernels import to_float32
from precaudit.execution.libraries import PlanAutocast
from precaudit.execution.products import tf32
from precaudit.execution.rounding import FLOAT8_DTYPES, HALF_DTYPES
from precaudit.instrument.functions import IN_FLOAT32
from precaudit.instrument.scopes import PLANNED, Frame
from precaudit.instrument.torch_function import Call, OperationMode
from precaudit.model import Execution, Plan


def autocast_for(format_name: str, device: str) -> torch.autocast:
    """The autocast region of a format; for float32 and tf32 it disables autocast.

    Other operations of float8 regions run in bfloat16; `ScopeMode` runs their linear layers.
    """
    if format_name in WIDE:
        return PlanAutocast(device, enabled=False)
    return PlanAutocast(device, dtype=HALF_DTYPES.get(format_name, torch.bfloat16))


@contextmanager
def region_for(format_name: str, *devices: str) -> Iterator[None]:
    """`autocast_for` on these devices, with float32 products as TF32 in a tf32 region only."""
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(autocast_for(format_name, device))
        stack.enter_context(tf32(format_name == "tf32"))
        yield


def backward_products(plan: Plan) -> tf32:
    """The context for float32 products in the backward pass of a plan's modules."""
    return tf32(plan.matmul_precision != "highest")


class ScopeMode(OperationMode):
    """Runs each of a module's own operations in its format: exceptions from the default, float32 inputs in float32,
    linear layers in float8. It is active in the modules inside too, whose operations pass (`is_own` is False)."""

    __torch_function__ = torch.compiler.disable(OperationMode.__torch_function__)

    def __init__(
        self,
        scope: ScopeFormat,
        devices: tuple[str, ...],
        is_own: Callable[[], bool],
        in_disabled_region: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._scope, self._devices = scope, devices
        self._is_own, self._in_disabled_region = is_own, in_disabled_region

    def whole(self, op: str) -> bool:
        return op in self._scope.ops

    def operation(self, call: Call) -> Any:
        if call.op.startswith("__get") or not self._is_own():
            return call()
        format_name = self._scope.of(call.op)
        if format_name not in WIDE and self._in_disabled_region():
            return call()
        if float8.applies(call, format_name):
            by_row, multiply = self._scope.by_row, float8.multiplier(call.given[0].device)
            return float8.linear(*call.args, **call.kwargs, forward=format_name, by_row=by_row, multiply=multiply)
        if format_name == self._scope.default:
            return self._run(call)
        with region_for(format_name, *self._devices):
            return self._run(call)

    def _run(self, call: Call) -> Any:
        if self._scope.of(call.op) not in WIDE:
            return call()
        return written(call) if call.writes else in_float32(call)


class NativePrecision(PlanExecution):
    """Opens an autocast region where a module's format differs from that of its surroundings."""

    def entered(self, frame: Frame) -> None:
        root = frame.root.data
        if self._begins(frame):
            root["formats"], frame.data["outermost"] = [None], True
        if not root.get(PLANNED):
            return
        scope, active = self._format_in(frame), root["formats"]
        contexts: list[AbstractContextManager[Any]] = []
        opens = scope.default != active[-1] and (scope.default in WIDE or not self._in_disabled_region())
        if opens:
            contexts.append(region_for(scope.default, *_devices_of(frame.module)))
        if scope.ops or scope.default in FLOAT8_DTYPES or frame.data[IN_FLOAT32]:
            own = partial(self._is_running, frame)
            contexts.append(ScopeMode(scope, _devices_of(frame.module), own, self._in_disabled_region))
        active.append(scope.default if opens else active[-1])
        frame.data["regions"] = stack = ExitStack()
        for context in contexts:
            stack.enter_context(context)

    def _is_running(self, frame: Frame) -> bool:
        """Whether it is this module itself that runs, and none inside it."""
        return self._scopes.current is frame

    def left(self, frame: Frame, output: Any) -> Any:
        stack = frame.data.get("regions")
        if stack is not None:
            stack.close()
            frame.root.data["formats"].pop()
        if "outermost" not in frame.data:
            return output
        del frame.root.data[PLANNED]
        return to_float32(output)


def precision_for(execution: Execution) -> type[PlanExecution]:
    """What runs models under a plan in this way."""
    return NativePrecision if execution == "native" else Emulator


def _devices_of(module: torch.nn.Module) -> tuple[str, ...]:
    """That of the module's first tensor, and CUDA where it is in use: other parts of a model may lie there, and what is
    offloaded computes there. What lies on "meta" computes elsewhere."""
    tensors = chain(module.parameters(), module.buffers())
    own = next((tensor.device.type for tensor in tensors if not tensor.is_meta), "cpu")
    return (own, "cuda") if own != "cuda" and torch.cuda.is_initialized() else (own,)
