"""Torch functions as a mode receives them: their names, and the operations inside Python composites.

A `TorchFunctionMode` receives Python-level composites such as `F.multi_head_attention_forward` as one call. Calling
them with the mode off hides their operations; calling them with the mode on recurses, because they check
`has_torch_function` again. `OperationMode` runs a copy of the function (`twin`) without that check, so that the mode
receives the C++ operations inside.
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

_OPERATORS = {"matmul": "matmul", "pow": "pow", "add": "add", "mul": "mul", "sub": "sub", "truediv": "div"}
_ALIASES = {
    **{f"__{side}{name}__": op for name, op in _OPERATORS.items() for side in ("", "r", "i")},
    **{f"special_{name}": name for name in "softmax log_softmax logsumexp expm1 log1p erfinv".split()},
    **dict.fromkeys("__div__ __rdiv__ true_divide divide".split(), "div"),
    **{"_conv_forward": "conv", "__neg__": "neg", "__abs__": "abs", "arccos": "acos", "arcsin": "asin"},
    **{"multiply": "mul", "subtract": "sub", "rsub": "sub", "linalg_matmul": "matmul", "clip": "clamp"},
}

RAISED_BY = "precaudit_op"
"""Attribute of an exception: the name of the operation that raised it."""

_COMPOSITES = ("torch.functional", "torch.nn.functional")
_IN_PLACE_OPERATORS = frozenset(
    "__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ "
    "__ilshift__ __irshift__ __setitem__".split()
)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=4096)
def op_name(func: Callable[..., Any]) -> str:
    """torch's name for a function; operators and in-place variants have the name of the plain function."""
    name = getattr(func, "__name__", type(func).__name__)
    name = _ALIASES.get(name, name)
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name


@lru_cache(maxsize=4096)
def overloads_of(func: Callable[..., Any]) -> tuple[OpOverload, ...]:
    """What a function of `torch.ops` stands for; () for any other function."""
    if isinstance(func, OpOverloadPacket):
        return tuple(getattr(func, name) for name in func.overloads())
    return (func,) if isinstance(func, OpOverload) else ()


class Call(NamedTuple):
    """A call of a torch function."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    @property
    def op(self) -> str:
        return op_name(self.func)

    @property
    def given(self) -> list[torch.Tensor]:
        """The tensors among its arguments."""
        return tensors_in((self.args, self.kwargs))

    @property
    def writes(self) -> bool:
        """Whether it changes one of its arguments: an in-place variant, an assignment, or `out=`."""
        name = getattr(self.func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        return in_place or name in _IN_PLACE_OPERATORS or self.kwargs.get("out") is not None

    @property
    def target(self) -> Any:
        """What it changes, if it writes."""
        return self.kwargs.get("out", self.args[0] if self.args else None)

    @property
    def without_out(self) -> Call:
        return self._replace(kwargs={name: value for name, value in self.kwargs.items() if name != "out"})


FUSED = frozenset("_fused_adam _fused_adamw _fused_sgd _fused_adagrad".split())
"""Whole optimizer steps in one call, on lists of parameters, gradients, and states."""


def takes_lists(func: Callable[..., Any]) -> bool:
    """Whether a function works on lists of tensors."""
    return getattr(func, "__name__", "").startswith("_foreach_") or op_name(func) in FUSED


def single_calls(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """The calls for single tensors that a call on lists of tensors (`torch._foreach_lerp_`) stands for."""
    if not takes_lists(func):
        return [Call(func, args, kwargs)]
    if op_name(func) in FUSED:
        return [Call(func, tuple(arg[i : i + 1] for arg in args), kwargs) for i in range(len(args[0]))]
    name = func.__name__
    single = getattr(torch.Tensor, name.removeprefix("_foreach_"), None)
    if single is None:
        return []
    if len(args) > 3 and name.startswith(("_foreach_addcmul", "_foreach_addcdiv")):
        args, kwargs = args[:3], {**kwargs, "value": args[3]}
    return [
        Call(single, tuple(_item(arg, i) for arg in args), {key: _item(value, i) for key, value in kwargs.items()})
        for i in range(len(args[0]))
    ]


def _item(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, (list, tuple)) else value


def stored(gradient: torch.Tensor) -> torch.Tensor:
    """The stored values of a gradient; for a sparse one those of its rows."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def energy(values: torch.Tensor) -> float:
    """Sum of squares; inf for anything non-finite."""
    total = float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
    return math.inf if math.isnan(total) else total


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A detached plain torch.Tensor with the same values: a subclass may refuse slicing or stacking, or accumulate
    state."""
    with torch._C.DisableTorchFunction():
        return tensor.detach()


def _no_override(*_: object) -> bool:
    return False


_OVERRIDE_CHECKS = dict.fromkeys(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _no_override
)


@lru_cache(maxsize=256)
def _twin_globals(module: str) -> dict[str, Any]:
    import sys

    return {**vars(sys.modules[module]), **_OVERRIDE_CHECKS}


def _reversed_division(tensor: torch.Tensor, other: Any) -> Any:
    """`other / tensor` as torch computes it, with a reciprocal, which has its own autocast category."""
    return tensor.reciprocal() * other


@lru_cache(maxsize=4096)
def twin(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy of a Python composite of torch without its override check; None for anything else."""
    if func is torch.Tensor.__rdiv__:
        return _reversed_division
    while isinstance(func, types.FunctionType) and "__wrapped__" in vars(func):
        func = vars(func)["__wrapped__"]
    if not isinstance(func, types.FunctionType) or func.__module__ not in _COMPOSITES:
        return None
    function = types.FunctionType(
        func.__code__, _twin_globals(func.__module__), func.__name__, func.__defaults__, func.__closure__
    )
    function.__kwdefaults__ = func.__kwdefaults__
    return function


class _Expanding(threading.local):
    """The composites being expanded, per thread. A copy of the mode starts with none."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []

    def __reduce__(self) -> Any:
        return _Expanding, ()


class OperationMode(TorchFunctionMode):
    """A function mode that expands composites and passes every single operation to `operation`."""

    def __init__(self) -> None:
        super().__init__()
        self._expanding = _Expanding()

    def whole(self, op: str) -> bool:
        """Whether a composite is passed on unexpanded."""
        return False

    def operation(self, call: Call) -> Any:
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = op_name(func)
        inner, expanding = twin(func), self._expanding.functions
        if inner is None or self.whole(op) or func in expanding:
            try:
                return self.operation(Call(func, args, kwargs))
            except Exception as error:
                vars(error).setdefault(RAISED_BY, op)
                raise
        # Some composites reach the mode again through a dispatcher; then they are a single operation.
        expanding.append(func)
        try:
            with self:
                return inner(*args, **kwargs)
        finally:
            expanding.pop()


_SCALARS = (int, float, str, type(None))
"""Checked first, as most arguments are such and the check for mappings is slow."""


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with `function` applied to every tensor in nested lists, tuples, mappings and dataclasses.

    Containers are rebuilt only where a tensor changed, so identities are preserved otherwise.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items) if type(value) in (list, tuple) else _rebuilt_sequence(value, items)
    own = value if isinstance(value, Mapping) else fields_of(value)
    changed = {key: map_tensors(function, item) for key, item in own.items()}
    if all(changed[key] is item for key, item in own.items()):
        return value
    return (_rebuilt_mapping if own is value else _rebuilt_dataclass)(value, changed)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that are set; {} for anything else."""
    if isinstance(value, type) or not is_dataclass(value):
        return {}
    return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}


def _rebuilt_dataclass(value: Any, changed: dict[str, Any]) -> Any:
    """A copy without a call of `__init__`, whose checks and computations have been done."""
    rebuilt = copy(value)
    for name, item in changed.items():
        object.__setattr__(rebuilt, name, item)
    return rebuilt


def _rebuilt_sequence(value: Any, items: list[Any]) -> Any:
    """torch's structseq results (`max`, `sort`) take one iterable; unknown subclasses fall back to a tuple."""
    try:
        return type(value)(items)
    except TypeError:
        return tuple(items)


def _rebuilt_mapping(value: Mapping[str, Any], changed: dict[str, Any]) -> Any:
    """A copy, which keeps what the type stores besides its items, such as the batch size of a tensor dictionary."""
    if type(value) is dict:
        return changed
    if isinstance(value, MutableMapping) and hasattr(value, "__copy__"):
        rebuilt = copy(value)
        for key, item in changed.items():
            rebuilt[key] = item
        return rebuilt
    try:
        return type(value)(**changed)
    except TypeError:
        return type(value)(changed)  # type: ignore[call-arg]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested lists, tuples, mappings and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        found = []
        for item in value:
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif not isinstance(item, _SCALARS):
                found += tensors_in(item)
        return found
    own = value if isinstance(value, Mapping) else fields_of(value)
    return [tensor for item in own.values() for tensor in tensors_in(item)]


def floats_in(value: Any) -> list[torch.Tensor]:
    """Those of them that are floating-point."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]
