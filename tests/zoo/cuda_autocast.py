"""A crude stand-in for CUDA autocast on a CPU, for judging the zoo only: plain torch, written apart from precaudit.

Tensors really are half, so torch's own promotion rules apply to every elementwise operation. Operations on
autocast's lower-precision list see inputs rounded to half, compute in float32 and round their output, forward
and backward (a cast's backward rounds the gradient); operations on its float32 list get widened inputs.
The lists are those of torch's `ATen/autocast_mode.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

LOWER = set(
    "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d prelu addmm addmv addr matmul "
    "rmatmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul lstm gru rnn_tanh rnn_relu lstm_cell "
    "gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention".split()
)
FLOAT32 = set(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow rpow softplus layer_norm "
    "rms_norm group_norm norm cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss hinge_embedding_loss "
    "kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss soft_margin_loss triplet_margin_loss "
    "binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp interpolate prod softmax log_softmax cumprod "
    "cumsum linalg_vector_norm linalg_norm vector_norm sum square cross_entropy normalize".split()
)
PROMOTE = set("addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put tensordot scatter_add".split())
FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e4m3": torch.bfloat16}


def _cast(dtype: torch.dtype) -> Callable[[Any], Any]:
    wanted = (torch.float16, torch.bfloat16, torch.float32)
    return lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in wanted else x


def _widest(tree: Any) -> torch.dtype:
    dtypes = [x.dtype for x in tree_flatten(tree)[0] if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.float32 if torch.float32 in dtypes else next(iter(dtypes), torch.float32)


class _Float8(torch.autograd.Function):
    """Tensor-wise scaled e4m3 forward, e5m2 for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _through(x, torch.float8_e4m3fn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _through(grad, torch.float8_e5m2)


def _through(x: Tensor, dtype: torch.dtype) -> Tensor:
    scale = torch.finfo(dtype).max / x.abs().amax().float().clamp(min=1e-30)
    return ((x.float() * scale).to(dtype).float() / scale).to(x.dtype)


class CudaAutocast(TorchFunctionMode):
    """`births` gets (module, operation) wherever finite inputs made a non-finite output."""

    def __init__(self, format: str) -> None:
        super().__init__()
        self.format, self.dtype = format, FORMATS[format]
        self.stack: list[nn.Module] = []
        self.suspended = 0
        self.births: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_") if func.__name__.startswith("__") else func.__name__
        out = func(*args, **kwargs) if self.suspended else self._call(func, name, args, kwargs)
        if name not in ("masked_fill", "full", "where") and _broken(out) and not _broken((args, kwargs)):
            self.births.append((self._fqn(), name))
        return out

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in LOWER:
            args, kwargs = tree_map(_cast(self.dtype), (args, kwargs))
            if self.format == "float8_e4m3" and name == "linear":
                args = (_Float8.apply(args[0]), _Float8.apply(args[1]), *args[2:])
            args, kwargs = tree_map(_cast(torch.float32), (args, kwargs))
            return tree_map(_cast(self.dtype), func(*args, **kwargs))
        if name in FLOAT32:
            args, kwargs = tree_map(_cast(torch.float32), (args, kwargs))
        elif name in PROMOTE:
            args, kwargs = tree_map(_cast(_widest((args, kwargs))), (args, kwargs))
        return func(*args, **kwargs)

    def _fqn(self) -> str:
        names = {module: name for name, module in self.stack[0].named_modules()}
        return names.get(self.stack[-1], "?") or type(self.stack[0]).__name__

    def run(self, call: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """`module(...)`; under the mode where it is outermost and has parameters, its outputs then in float32."""
        outermost = not self.stack
        if outermost and next(module.parameters(), None) is None:
            return call(module, *args, **kwargs)
        self.stack.append(module)
        try:
            if not outermost:
                return call(module, *args, **kwargs)
            with self:
                out = call(module, *args, **kwargs)
            recomputing = torch._C._current_graph_task_id() != -1  # a checkpointed block, inside backward
            return out if recomputing else tree_map(_cast(torch.float32), out)
        finally:
            self.stack.pop()


def _broken(tree: Any) -> bool:
    tensors = [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor) and x.is_floating_point()]
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return any(x.numel() and not x.isfinite().all() for x in tensors)


@contextmanager
def in_float32() -> Iterator[None]:
    """The script's own autocast regions and gradient scalers switched off."""
    with patch.object(torch.autocast, "__enter__", lambda region: region), _no_exit(), _no_scaler():
        yield


@contextmanager
def emulated(format: str) -> Iterator[CudaAutocast]:
    """Outermost modules run under `format`; a `torch.autocast(..., enabled=False)` inside is respected, as on CUDA."""
    mode, call = CudaAutocast(format), nn.Module.__call__

    def enter(region: torch.autocast) -> torch.autocast:
        # Checkpointing re-enters the autocast state that it saw, which is ours to give, before it calls the block.
        region.suspends = bool(mode.stack) and not region._enabled
        mode.suspended += region.suspends
        return region

    def leave(region: torch.autocast, *_: Any) -> None:
        mode.suspended -= region.suspends

    with (
        patch.object(nn.Module, "__call__", lambda module, *a, **k: mode.run(call, module, *a, **k)),
        patch.object(torch.autocast, "__enter__", enter),
        patch.object(torch.autocast, "__exit__", leave),
        _no_scaler(),
    ):
        yield mode


def _no_exit() -> Any:
    return patch.object(torch.autocast, "__exit__", lambda region, *_: None)


def _no_scaler() -> Any:
    make = torch.amp.GradScaler.__init__
    return patch.object(
        torch.amp.GradScaler, "__init__", lambda self, *a, **k: make(self, *a, **{**k, "enabled": False})
    )
