"""A function mode that records every floating-point operation of the module that called it."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch

from precaudit.execution.atomics import SUMS
from precaudit.execution.policy import Category, category
from precaudit.execution.rounding import HALVES
from precaudit.formats import get_format
from precaudit.instrument.names import outside_callers
from precaudit.instrument.torch_function import Call, OperationMode, floats_in, tensors_in
from precaudit.model import PACKAGES, Location
from precaudit.tracing.faults import hand_on_readers

STRUCTURAL = frozenset(
    "view reshape transpose permute expand expand_as split split_with_sizes chunk unbind __getitem__ contiguous "
    "squeeze unsqueeze flatten unflatten to float half bfloat16 double type type_as detach clone narrow select t "
    "movedim swapaxes swapdims view_as reshape_as roll flip size dim numel stride item tolist numpy cpu cuda "
    "is_contiguous requires_grad_ requires_grad register_hook retain_grad backward data_ptr repeat "
    "repeat_interleave tile index_select gather unfold tensor_split hsplit vsplit zeros ones empty zeros_like "
    "ones_like empty_like new_zeros new_ones new_empty new_tensor tensor as_tensor from_numpy rand randn "
    "rand_like randn_like randint manual_seed is_floating_point is_complex is_tensor __setitem__ fill zero copy "
    "diagonal mT __len__ __iter__ __format__ __repr__ pixel_shuffle broadcast_tensors broadcast_to meshgrid set_ "
    "share_memory atleast_1d atleast_2d ravel tril triu movedims moveaxis unsafe_chunk unsafe_split view_as_real "
    "view_as_complex real imag stack cat concat concatenate hstack vstack pad _pad_packed_sequence "
    "_pack_padded_sequence masked_select squeeze_copy narrow_copy".split()
)
"""Operations that only move, copy, create or describe values, which are recorded where they were computed."""

CASTS = frozenset("to half bfloat16 float double type type_as".split())

_FILLING = frozenset("__setitem__ fill pad tensor new_tensor".split())
"""Those that may write a constant, recorded where it is one that float16 can't hold."""

_FACTORS = frozenset({"alpha", "beta"})

_BY_STATISTICS = frozenset("batch_norm native_batch_norm cudnn_batch_norm instance_norm".split())

HALF_FLAG = "_precaudit_half"
"""Attribute of a float32 tensor that autocast would store in half precision. `_PRESUMED` marks a tensor with the dtype
that the script read from such a tensor, which a run in half must confirm."""

_PRESUMED = "presumed"

_FOLLOWS_FLAG = "_precaudit_follows"
"""Attribute of a tensor with the largest number of a dtype that is half under autocast, such as a mask."""

# What precaudit itself asks of tensors is none of the other function modes' business: each question would pass through
# all of them, which takes longer than many an operation.
unasked = torch._C.DisableTorchFunction

_STANDARD = (sysconfig.get_path("stdlib"), "<frozen ")


def _asks_for_half(call: Call) -> bool | None:
    """Whether a cast requests half, by its name, a dtype, or another tensor; None where it requests no dtype."""
    if call.op in ("half", "bfloat16", "float", "double"):
        return call.op in ("half", "bfloat16")
    asked = [value for value in _options(call) if isinstance(value, (torch.Tensor, torch.dtype))]
    return next((is_half(value) if isinstance(value, torch.Tensor) else value in HALVES for value in asked), None)


def _options(call: Call) -> tuple[Any, ...]:
    """What a cast is given besides the tensor."""
    return (*call.args[1:], *call.kwargs.values())


def scalars(call: Call) -> list[float]:
    """Magnitudes of the non-zero float arguments of a call, without a sum's factors (alpha, beta), which stay float32
    in the kernel."""
    values = (*call.args, *(value for name, value in call.kwargs.items() if name not in _FACTORS))
    return [abs(v) for v in values if isinstance(v, float) and v]


def _fills_with_large(call: Call) -> bool:
    return any(get_format("float16").overflow_threshold <= value < math.inf for value in scalars(call))


def _follows(call: Call) -> bool:
    """Whether a cast takes another tensor's dtype, which is float32 here and may be half under autocast."""
    return any(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in _options(call))


class OpSink(Protocol):
    def begin(self, call: Call, half: bool) -> Any: ...

    def record(self, token: Any, outputs: list[torch.Tensor]) -> None: ...

    def read_half_dtype(self) -> None:
        """The script reads the dtype of a tensor that would be half under autocast."""


def is_half(tensor: torch.Tensor) -> bool:
    """Whether a tensor is half, or would be stored in half by autocast."""
    return tensor.dtype in HALVES or bool(getattr(tensor, HALF_FLAG, False))


def _is_presumed(tensor: torch.Tensor) -> bool:
    return getattr(tensor, HALF_FLAG, False) == _PRESUMED


def stored_in_half(op: str, kind: Category, inputs: list[torch.Tensor]) -> bool:
    """Whether autocast would store the result in half, by the operation's category or by type promotion.

    Zero-dimensional tensors don't take part in promotion unless all inputs are. Batch and instance norm follow their
    first input, as their statistics stay float32.
    """
    if kind == "lower":
        return True
    if kind in ("fp32", "banned") or not inputs:
        return False
    if op in _BY_STATISTICS:
        return is_half(inputs[0])
    dominant = [tensor for tensor in inputs if tensor.dim()] or inputs
    return all(is_half(tensor) for tensor in dominant)


def caller_location() -> Location | None:
    """The innermost line on the stack outside torch and precaudit, of a file if there is one: code that torch.fx
    generates has none that a user could open."""
    files = (frame for frame in outside_callers() if is_of_a_file(frame.f_code.co_filename))
    return next(map(_line, files), None) or next(map(_line, outside_callers()), None)


def script_location() -> Location | None:
    """The innermost line on the stack outside all libraries: where a user can change what a library does. Where a
    library's own script is run, `caller_location`."""
    own = (frame for frame in outside_callers() if is_of_script(frame.f_code.co_filename))
    return next(map(_line, own), None) or caller_location()


def is_of_a_file(path: str) -> bool:
    return not path.startswith("<")


def is_of_script(path: str) -> bool:
    """Whether code stands in a file that belongs to no library."""
    return is_of_a_file(path) and not is_of_library(path)


def _line(frame: FrameType) -> Location:
    return Location(frame.f_code.co_filename, frame.f_lineno)


def is_of_library(path: str) -> bool:
    """Whether code belongs to an installed library or to Python's own."""
    return PACKAGES.search(path) is not None or path.startswith(_STANDARD)


class TraceMode(OperationMode):
    """Reports every operation with floating-point results to `sink`; composite Python functions by their parts."""

    def __init__(self, sink: OpSink, kind: Callable[[str], Category] = category) -> None:
        super().__init__()
        self._sink, self._kind = sink, kind
        self._read_at: Location | None = None

    def operation(self, call: Call) -> Any:
        op = call.op
        if op.startswith("__get") and op != "__getitem__":
            if getattr(call.func, "__self__", None) is torch.Tensor.dtype:
                self._read_dtype(is_half(call.args[0]))
            return call()
        if op == "__set__":  # of an attribute, such as the values that a lazy parameter gets
            return call()
        read_at, self._read_at = self._read_at, None
        if op in CASTS:
            return self._cast(call, read_at)
        widens = call.kwargs.get("dtype") == torch.float32 and (read_at is None or read_at != caller_location())
        if op in STRUCTURAL and not (op in _FILLING and _fills_with_large(call)):
            return self._structural(call, widens)
        return self._traced(call, widens)

    def _read_dtype(self, half: bool) -> None:
        self._read_at = caller_location() if half else None
        if half:
            self._sink.read_half_dtype()

    def _structural(self, call: Call, widens: bool = False) -> Any:
        """`widens`: the call requests float32 explicitly, not by the dtype of a half: `zeros_like(x, dtype=...)`."""
        with unasked():
            inputs = floats_in(call.args)
        result = call()
        with unasked():
            if inputs and not widens and all(is_half(tensor) for tensor in inputs):
                mark_half(tensors_in(result), any(map(_is_presumed, inputs)))
            if inputs:
                hand_on_readers(inputs[0], tensors_in(result))
            if any(map(follows_dtype, inputs)):
                mark_following(tensors_in(result))
        return result

    def _cast(self, call: Call, read_at: Location | None) -> Any:
        """Trace a cast to half as an operation, since values may overflow in it. `y.to(x.dtype)` is presumed to be such
        a cast where the dtype of a half was read just before on the same line, `read_at`.

        Where a cast returns its input, the result is replaced by a view, so that only the result is marked.
        """
        half = _asks_for_half(call)
        if half is None or not isinstance(call.args[0], torch.Tensor):
            return self._structural(call)
        source, follows = call.args[0], _follows(call)
        by_dtype = call.op in ("to", "type") and not (half or follows)
        presumed = by_dtype and read_at is not None and read_at == caller_location()
        half = half or presumed
        narrows = half and source.dtype == torch.float32
        token = self._sink.begin(call, follows) if narrows else None
        result = call()
        if result is source and result.dtype == torch.float32 and half != is_half(result):
            result = result.view_as(result)
        if half:
            mark_half([result], presumed)
        if narrows:
            self._sink.record(token, [result])
        return result

    def _traced(self, call: Call, widens: bool) -> Any:
        with unasked():
            half, presumed = self._results_of(call, widens)
            token = self._sink.begin(call.without_out, half and not presumed)
        result = call()
        made = call.target if result is None and call.writes else result  # an assignment returns nothing
        with unasked():
            outputs = [t for t in tensors_in(made) if t.is_floating_point() or t.is_complex()]
            if half:
                mark_half(outputs, presumed)
            if outputs:
                self._sink.record(token, outputs)
        return result

    def _results_of(self, call: Call, widens: bool) -> tuple[bool, bool]:
        """Whether the results of an operation are half, and whether that is only presumed."""
        op, kind = call.op, self._kind(call.op)
        inputs = floats_in(call)
        target = call.target if call.writes else None
        if op in SUMS and call.args and (target is not None or kind != "promote") and any(map(is_half, inputs)):
            mark_half([call.args[0]])  # torch requires equal dtypes: a target made with `dtype=x.dtype` is half too
        stored = not widens and stored_in_half(op, kind, inputs)
        half = is_half(target) if isinstance(target, torch.Tensor) else stored
        return half, half and kind != "lower" and any(map(_is_presumed, inputs))


def follows_dtype(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, _FOLLOWS_FLAG)


def mark_following(outputs: list[torch.Tensor]) -> None:
    for tensor in outputs:
        setattr(tensor, _FOLLOWS_FLAG, True)


def mark_half(outputs: list[torch.Tensor], presumed: bool = False) -> None:
    """Mark float32 results as half, but never a parameter."""
    for tensor in outputs:
        if not (tensor.is_leaf and tensor.requires_grad) and tensor.dtype == torch.float32:
            setattr(tensor, HALF_FLAG, _PRESUMED if presumed else True)
