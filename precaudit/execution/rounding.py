"""Rounding points: how an operand enters a product and how its result leaves it, forward and backward.

Half formats are real half tensors, so torch's own promotion, views and casts apply; the products between
them are computed in float32, as Tensor Cores accumulate. Casting with autograd puts the backward rounding
where autocast has it: a gradient passes `float().to(half)` in reverse, so dgrad and wgrad round to half.
tf32 and float8 have no storage of that kind, so they round values in float32 words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
HALVES = tuple(HALF_DTYPES.values())
FLOAT8_DTYPES = {"float8_e4m3": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
LOW_DTYPES = (*HALVES, *FLOAT8_DTYPES.values())
CASTABLE = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that autocast converts; float64 is left alone."""


def round_mantissa(values: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 `values` rounded to `bits` fraction bits, ties to even; the exponent range stays float32's.

    Non-finite values pass unchanged. `bits=10` is tf32.
    """
    if bits >= 23:
        return values
    words = values.detach().float().contiguous().view(torch.int32)
    drop = 23 - bits
    half_minus_one = (1 << (drop - 1)) - 1
    rounded = (words + half_minus_one + ((words >> drop) & 1)) & ~((1 << drop) - 1)
    return torch.where(values.isfinite(), rounded.view(torch.float32), values)


def scaled(values: torch.Tensor, name: str, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` in float8, and the float32 scale that they were multiplied by: it maps amax to the format's maximum.

    One scale for the tensor, or one for each row along `dim`, which is kept with size one. Zero rows and non-finite
    amax use a scale of one; finite values are clamped before the cast, whose overflow behaviour differs between
    releases of torch, and others become nan.
    """
    dtype = FLOAT8_DTYPES[name]
    limit = torch.finfo(dtype).max
    data = values.detach().float()
    if not data.numel():  # an expert without tokens
        return data.to(dtype), data.new_ones(() if dim is None else data.sum(dim, keepdim=True).shape)
    amax = data.abs().amax() if dim is None else data.abs().amax(dim, keepdim=True)
    scale = torch.where((amax > 0) & amax.isfinite(), limit / amax, torch.ones_like(amax))
    scale = torch.where(scale.isfinite(), scale, torch.ones_like(scale))
    return torch.where(data.isfinite(), (data * scale).clamp(-limit, limit), torch.nan).to(dtype), scale


def quantize(values: torch.Tensor, name: str, dim: int | None = None) -> torch.Tensor:
    """`values` rounded to float8 with the scale of `scaled`, in their own dtype; non-finite values are unchanged."""
    low, scale = scaled(values, name, dim)
    return torch.where(values.isfinite(), (low.float() / scale).to(values.dtype), values)


class _RoundForward(torch.autograd.Function):
    """Rounds in the forward pass; the gradient is passed unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return rounding(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        """Nothing of the values is needed again."""

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        return tangents[0].clone()


class _Replaced(_RoundForward):
    """Replaces values in the forward pass, with the gradient of the original. Copies, because the output of such a
    function can't be changed in place where it is a view of the input."""

    @staticmethod
    def forward(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return others.clone()


def replaced(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """`others` with the backward pass of `values`."""
    return _Replaced.apply(values, others)


class _RoundBackward(_RoundForward):
    """Identity in the forward pass; rounds the gradient in the backward pass."""

    @staticmethod
    def forward(values: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.rounding = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _RoundForward.apply(gradients[0], ctx.rounding), None


@dataclass(frozen=True)
class Rounding:
    """The rounding points of a product: `operand` rounds a factor, `addend` a tensor (bias) that is added, and `result`
    the product."""

    operand: Callable[[torch.Tensor], torch.Tensor]
    addend: Callable[[torch.Tensor], torch.Tensor]
    result: Callable[[torch.Tensor], torch.Tensor]
    dtype: torch.dtype


def _half(dtype: torch.dtype) -> Rounding:
    return Rounding(lambda x: x.to(dtype).float(), lambda b: b.to(dtype).float(), lambda y: y.to(dtype), dtype)


def in_words(rounding: Callable[[torch.Tensor], torch.Tensor]) -> Rounding:
    """Rounding of formats without a dtype: factors are rounded float32 values, in both passes."""
    return Rounding(
        lambda x: _RoundForward.apply(x.float(), rounding),
        torch.Tensor.float,
        lambda y: _RoundBackward.apply(y, rounding),
        torch.float32,
    )


def _float8(forward: str) -> Rounding:
    """float8 training: operands in the format `forward`, incoming gradients in e5m2, the rest in bfloat16."""

    def operand(x: torch.Tensor) -> torch.Tensor:
        return _RoundForward.apply(x.to(torch.bfloat16).float(), lambda v: quantize(v, forward))

    def result(y: torch.Tensor) -> torch.Tensor:
        return _RoundBackward.apply(y, lambda g: quantize(g, "float8_e5m2")).to(torch.bfloat16)

    return Rounding(operand, lambda b: b.to(torch.bfloat16).float(), result, torch.bfloat16)


ROUNDINGS = {
    "bfloat16": _half(torch.bfloat16),
    "float16": _half(torch.float16),
    "tf32": in_words(lambda values: round_mantissa(values, 10)),
    "float8_e4m3": _float8("float8_e4m3"),
    "float8_e5m2": _float8("float8_e5m2"),
}


def rounding_for(name: str, op: str = "linear") -> Rounding | None:
    """The rounding of `op` in a format; None for float32. float8 applies to linear layers; other operations run in
    bfloat16."""
    if name in FLOAT8_DTYPES and op != "linear":
        return ROUNDINGS["bfloat16"]
    return ROUNDINGS.get(name)
