"""Access to a tensor's values as one flat dense tensor, copied only if necessary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

COUNTED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_PLAIN = (Tensor, torch.nn.Parameter)
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def in_transform() -> bool:
    """Whether a functorch transform is running, which would wrap what torch operations return."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def outside_transforms() -> AbstractContextManager[Any]:
    """Suspends functorch transforms in this block."""
    return temporarily_clear_interpreter_stack() if in_transform() else nullcontext()


def flat(tensor: Tensor) -> Tensor | None:
    """The values as a dense tensor of a dtype in `COUNTED`; magnitudes are kept, signs and order are not.

    None where there is nothing to read: meta and fake tensors, freed storage, opaque wrappers. Of a sparse
    tensor the stored values are meant, not its implicit zeros. `TypeError` for integers and booleans.
    """
    with torch.no_grad():
        strided = _strided(tensor)
        return None if strided is None else _dense(_counted(strided.detach()))


def lie_alike(new: Tensor, old: Tensor) -> bool:
    """Whether two float32 tensors have the same memory order, so that their memory can be subtracted."""
    return (
        new.dtype is old.dtype is torch.float32
        and new.device == old.device
        and new.shape == old.shape
        and is_readable(new)
        and is_readable(old)
        and not new.is_neg()
        and not old.is_neg()
    )


def is_readable(tensor: Tensor) -> bool:
    """Whether the memory at the tensor's address holds exactly its `numel` values, up to their sign."""
    if type(tensor) not in _PLAIN:
        return False
    try:
        return tensor.dtype in COUNTED and tensor.is_contiguous() and _has_memory(tensor)
    except RuntimeError:  # compressed sparse layouts do not know whether they are contiguous
        return False


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except RuntimeError:  # functorch's wrappers, sparse and opaque layouts
        return False


def of_this_rank(tensor: Tensor) -> Tensor:
    """The local shard of a DTensor; any other tensor unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def has_no_values(tensor: Tensor) -> bool:
    """Whether the tensor is a shape alone: a meta or fake one."""
    return tensor.is_meta or hasattr(tensor, "fake_mode")


def _strided(tensor: Tensor) -> Tensor | None:
    """The strided tensor inside wrappers and other layouts; None if there are no values."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    if has_no_values(tensor):
        return None
    tensor = of_this_rank(tensor)
    if tensor.is_nested:
        return torch.cat([part.reshape(-1) for part in tensor.unbind()])
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    if tensor.layout in _COMPRESSED:
        return tensor.values()
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    if tensor._is_zerotensor():
        return tensor.clone()
    return tensor if _has_memory(tensor) or not tensor.numel() else None


def _counted(tensor: Tensor) -> Tensor:
    """The same magnitudes in a dtype of `COUNTED`."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)
    if tensor.dtype in COUNTED:
        return tensor
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1 and tensor.dtype is not torch.float4_e2m1fn_x2:
        return tensor.to(torch.bfloat16)  # exact for every 8-bit format
    raise TypeError(f"exponents of {tensor.dtype} values cannot be counted: only floating point and complex have any")


def _dense(tensor: Tensor) -> Tensor:
    """The values in memory order: without a copy for transposed and channels-last tensors, copied if there are gaps or
    overlaps."""
    if not tensor.numel():
        return tensor.new_empty(0)
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != extent:
            return tensor.contiguous()
        extent *= size
    return tensor.as_strided((extent,), (1,))
