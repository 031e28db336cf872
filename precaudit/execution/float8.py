"""Linear layers in float8: e4m3 (or e5m2) operands, e5m2 gradients, a scale per tensor or per row.

A row is what one product sums over: row-wise scaling gives each operand of each of the three products a scale per
row of its own, so weights are scaled anew for the backward pass. The product itself is torch's `_scaled_mm` where the
device has it, else float32 on the rounded operands, which is what `_scaled_mm` computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from precaudit.execution.rounding import CASTABLE, FLOAT8_DTYPES, scaled
from precaudit.instrument.torch_function import Call

GRADIENT = "float8_e5m2"
_ALIGNMENT = 16
Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(a, b, factor_a, factor_b) -> (a · factor_a) @ (b · factor_b) in bfloat16; a [m, k], b [k, n] in float8, factors
float32, scalars or [m, 1] and [1, n]."""


def in_float32(a: torch.Tensor, b: torch.Tensor, factor_a: torch.Tensor, factor_b: torch.Tensor) -> torch.Tensor:
    """The product of float8 operands, computed in float32."""
    return ((a.float() * factor_a) @ (b.float() * factor_b)).to(torch.bfloat16)


def on_tensor_cores(a: torch.Tensor, b: torch.Tensor, factor_a: torch.Tensor, factor_b: torch.Tensor) -> torch.Tensor:
    """`torch._scaled_mm`, which needs sizes in multiples of 16, a column-major second operand, and at most one e5m2.

    Rows of a batch are padded with zeros; other sizes, and e5m2 by e5m2, are computed in float32.
    """
    rows, summed = a.shape
    if a.dtype == b.dtype == torch.float8_e5m2 or b.shape[1] % _ALIGNMENT:
        return in_float32(a, b, factor_a, factor_b)
    missing = -summed % _ALIGNMENT
    if missing:
        a, b = _padded(a, (0, missing)), _padded(b, (0, 0, 0, missing))
    short = -rows % _ALIGNMENT
    if short:
        a = _padded(a, (0, 0, 0, short))
        factor_a = factor_a if factor_a.ndim == 0 else torch.nn.functional.pad(factor_a, (0, 0, 0, short), value=1.0)
    product = torch._scaled_mm(
        a.contiguous(),
        b.t().contiguous().t(),
        scale_a=factor_a.contiguous(),
        scale_b=factor_b.contiguous(),
        out_dtype=torch.bfloat16,
    )
    return product[:rows]


def _padded(values: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Pad with zeros; `torch.nn.functional.pad` has no float8."""
    return torch.nn.functional.pad(values.view(torch.uint8), widths).view(values.dtype)


class _Product(torch.autograd.Function):
    """a @ b in float8. Its gradients are products of the same kind, so it is differentiable any number of times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: torch.Tensor, b: torch.Tensor, formats: tuple[str, str], by_row: bool, multiply: Multiply
    ) -> torch.Tensor:
        low_a, scale_a = scaled(a, formats[0], dim=1 if by_row else None)
        low_b, scale_b = scaled(b, formats[1], dim=0 if by_row else None)
        with torch.autocast(a.device.type, enabled=False):
            return multiply(low_a, low_b, scale_a.reciprocal(), scale_b.reciprocal())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        a, b, ctx.formats, *ctx.rest = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        a, b = ctx.saved_tensors
        (format_a, format_b), gradient = ctx.formats, gradients[0]
        by_a = _Product.apply(gradient, b.t(), (GRADIENT, format_b), *ctx.rest) if ctx.needs_input_grad[0] else None
        # Transposed, because some of torch's kernels need e4m3 as the second factor.
        by_b = _Product.apply(gradient.t(), a, (GRADIENT, format_a), *ctx.rest) if ctx.needs_input_grad[1] else None
        return by_a, None if by_b is None else by_b.t(), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        a, b = ctx.saved_tensors
        pairs = [(tangents[0], b), (a, tangents[1])]
        products = [_Product.apply(*pair, ctx.formats, *ctx.rest) for pair in pairs if all(t is not None for t in pair)]
        return products[0] if len(products) == 1 else products[0] + products[1]


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    forward: str = "float8_e4m3",
    by_row: bool = False,
    multiply: Multiply = in_float32,
) -> torch.Tensor:
    """`torch.nn.functional.linear` in float8: `input` [..., k], `weight` [n, k], bfloat16 [..., n] out.

    The bias is added in bfloat16.
    """
    flat = input.to(torch.bfloat16).reshape(-1, input.shape[-1])
    product = _Product.apply(flat, weight.to(torch.bfloat16).t(), (forward, forward), by_row, multiply)
    result = product.reshape(*input.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias.to(torch.bfloat16)


def applies(call: Call, format_name: str) -> bool:
    """Whether an operation is a linear layer to be computed in float8; float64 inputs are left alone."""
    if call.op != "linear" or format_name not in FLOAT8_DTYPES:
        return False
    return all(tensor.dtype in CASTABLE for tensor in call.given)


def multiplier(device: torch.device) -> Multiply:
    """`_scaled_mm` on Tensor Cores with float8 (compute capability 8.9 and later), else float32 on rounded operands.
    AMD's GPUs, which are CUDA devices to torch too, have other float8 formats."""
    native = device.type == "cuda" and torch.version.hip is None
    return on_tensor_cores if native and torch.cuda.get_device_capability(device) >= (8, 9) else in_float32
