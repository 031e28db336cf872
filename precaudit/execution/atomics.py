"""Index sums in half precision. CUDA adds value by value to the stored sum and rounds each time, so that bfloat16 stops
growing at 256 equal addends; CPU kernels accumulate in float32 and round once, except `index_put`, which adds as CUDA
does. The backward pass of indexing sums gradients in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from precaudit.execution.rounding import HALVES
from precaudit.instrument.torch_function import Call

Index = tuple[torch.Tensor | None, ...]


def added_one_by_one(call: Call) -> Call:
    """The replacement for a call that sums by index, or whose backward pass does; any other call unchanged."""
    name, (_, args, kwargs) = call.op, call
    values = (*args, *kwargs.values())
    if name not in _IN_TURN or "out" in kwargs or not are_half(call.given):
        return call
    if name in _READING:
        sums = torch.is_grad_enabled() and args and args[0].requires_grad
        return call._replace(func=_READING[name]) if sums else call
    if name == "scatter_reduce" and not {"sum", "mean"}.intersection(each for each in values if isinstance(each, str)):
        return call
    put = torch.ops.aten.index_put_ if call.writes else _put
    return Call(_ADDING[name], (put, *args), kwargs)


def not_in_place(call: Call) -> Call:
    """The out-of-place form of a sum; any other call unchanged."""
    in_place = (call.op in SUMS or call.op == "add") and "out" not in call.kwargs and call.writes
    return call._replace(func=getattr(torch.Tensor, call.op)) if in_place else call


def are_half(tensors: list[torch.Tensor]) -> bool:
    """Whether these are half tensors on a CPU, of one dtype, with dimensions and outside of transforms, or an index."""
    values = [t for t in tensors if t.is_floating_point()]
    plain = all(
        t.device.type == "cpu" and t.dim() and not torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors
    )
    return plain and bool(values) and all(t.dtype in HALVES and t.dtype == values[0].dtype for t in values)


def _put(values: torch.Tensor, index: Index, addends: torch.Tensor, accumulate: bool) -> torch.Tensor:
    """The index sum, contiguous like torch's results, which a script may view as another shape."""
    return torch.ops.aten.index_put(values, index, addends, accumulate).contiguous()


def _index_add(
    put: Any, input: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: float = 1
) -> Any:
    addends = source if alpha == 1 else source * alpha
    return put(input, _rows(input, dim, index), addends, accumulate=True)


def _scatter_add(
    put: Any, input: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor, *_: Any, **__: Any
) -> Any:
    return put(input, _cells(index, dim), src[tuple(map(slice, index.shape))], accumulate=True)


def _scatter_reduce(
    put: Any,
    input: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    src: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """A sum, or a mean, whose count is added up in half as well."""
    if put is not _put:
        return input.copy_(_scatter_reduce(_put, input, dim, index, src, reduce, include_self=include_self))
    total = _scatter_add(put, input if include_self else input.scatter(dim, index, 0.0), dim, index, src)
    if reduce == "sum":
        return total
    start = torch.ones_like(input) if include_self else torch.zeros_like(input)
    count = _scatter_add(put, start, dim, index, torch.ones_like(src))
    return total / count.masked_fill(count == 0, 1.0)


def _index_select(input: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.index(input, _rows(input, dim, index)).contiguous()


def _gather(input: torch.Tensor, dim: int, index: torch.Tensor, *, sparse_grad: bool = False) -> torch.Tensor:
    if sparse_grad:
        return torch.gather(input, dim, index, sparse_grad=True)
    return torch.ops.aten.index(input, _cells(index, dim)).contiguous()


_ADDING: dict[str, Callable[..., Any]] = {
    "index_add": _index_add,
    "scatter_add": _scatter_add,
    "scatter_reduce": _scatter_reduce,
}
_READING: dict[str, Callable[..., Any]] = {"index_select": _index_select, "gather": _gather}
SUMS = frozenset(_ADDING)
_IN_TURN = _ADDING.keys() | _READING.keys()


def _rows(values: torch.Tensor, dim: int, index: torch.Tensor) -> Index:
    return (*[None] * (dim % values.dim()), index.long())


def _cells(index: torch.Tensor, dim: int) -> Index:
    """The full indices of each entry: along `dim` the value of `index`, along others its own position."""
    places = [torch.arange(size).view(-1, *[1] * (index.dim() - 1 - k)) for k, size in enumerate(index.shape)]
    places[dim % index.dim()] = index.long()
    return tuple(places)
