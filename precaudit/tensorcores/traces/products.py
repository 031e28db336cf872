"""Matrix products, convolutions and attention behind the ops of a trace: their FLOPs, format and dimensions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf, prod
from typing import Any

from precaudit.tensorcores.shapes.sizes import Product, attention, convolution, gemm

Shape = tuple[int, ...]

TEMPLATE = "triton_tem_"
"""Begins the names of Inductor's kernels that multiply, and of the ops that launch them."""

OPERAND_TYPES: Mapping[str, str] = {
    "float": "fp32",
    "double": "fp64",
    "c10::BFloat16": "bf16",
    "c10::Half": "fp16",
    "c10::Float8_e4m3fn": "fp8",
    "c10::Float8_e5m2": "fp8",
    "c10::Float4_e2m1fn_x2": "fp4",
    "signed char": "int8",
    "unsigned char": "int8",
}


@dataclass(frozen=True)
class Arguments:
    """The recorded arguments of a call: dimensions, type, the value of non-tensors. Where Inductor launches a Triton
    kernel, its `constants` (`BLOCK_M=64,...`), warps and FLOPs too."""

    dims: tuple[Shape, ...] = ()
    strides: tuple[Shape, ...] = ()
    types: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    constants: str = ""
    warps: int = 0
    flops: float = 0.0


_RECORDED = tuple(
    (key, key.capitalize())  # as PyTorch 1.8.0 wrote them: Input dims
    for key in ("Input Dims", "Input Strides", "Input type", "Concrete Inputs")
)


_LAUNCHED = ("kernel_kwargs", "num_warps", "kernel_flop")


def recorded_columns(recorded: Mapping[str, Any]) -> list[Any]:
    """What an op event says of its arguments' dimensions, strides, types and values, and of how Inductor launches its
    kernel, None where it doesn't."""
    return [recorded.get(key, recorded.get(old)) for key, old in _RECORDED] + [recorded.get(key) for key in _LAUNCHED]


def read_arguments(recorded: Mapping[str, Any]) -> Arguments:
    """The arguments of an op event; whatever is missing or of the wrong kind is left out."""
    *columns, constants, warps, flops = recorded_columns(recorded)
    dims, strides, types, values = (column if isinstance(column, list) else [] for column in columns)
    return Arguments(
        dims=tuple(map(_shape, dims)),
        strides=tuple(map(_shape, strides)),
        types=tuple(map(str, types)),
        values=tuple(map(str, values)),
        constants=str(constants or ""),
        warps=warps if isinstance(warps, int) else 0,
        flops=float(flops) if isinstance(flops, int | float) else 0.0,
    )


def _shape(entry: Any) -> Shape:
    if isinstance(entry, list) and all(isinstance(size, int) and size >= 0 for size in entry):
        return tuple(entry)
    return ()


def product(op: str, arguments: Arguments) -> Product | None:
    """The product that the op computes; None where the trace doesn't say enough."""
    read = reader_of(op)
    try:
        return _unpacked(read(arguments)) if read else None
    except (IndexError, ValueError, ArithmeticError):
        return None


def reader_of(op: str) -> Reader | None:
    """What reads the op's product from its arguments; None where it is none."""
    return _template if op.startswith(TEMPLATE) else SHAPED.get(op)


def _unpacked(found: Product) -> Product:
    """Two values of four bits share a byte, and the recorded sizes are of bytes."""
    if found.format != "fp4":
        return found
    dims = tuple((name, 2 * size if name == "K" else size) for name, size in found.dims)
    return replace(found, flops=2 * found.flops, dims=dims)


def _template(arguments: Arguments) -> Product:
    """By Inductor's own count."""
    _require(0 < arguments.flops < inf)
    return Product(arguments.flops, ())


def _require(consistent: bool) -> None:
    """Reject recorded sizes that contradict each other."""
    if not consistent:
        raise ValueError


def _format(arguments: Arguments, index: int) -> str | None:
    return OPERAND_TYPES.get(arguments.types[index]) if index < len(arguments.types) else None


def _contiguous(arguments: Arguments, index: int, names: str) -> str:
    """The name of the dimension along which the operand is contiguous: the last, unless it is transposed."""
    stride = arguments.strides[index] if index < len(arguments.strides) else ()
    return names[0] if len(stride) >= 2 and stride[-2] == 1 and stride[-1] != 1 else names[1]


def _gemm(first: int, arguments: Arguments) -> Product:
    """A product whose operands [.., M, K] and [.., K, N] start at argument `first`."""
    *batch, m, k = arguments.dims[first]
    *batches, depth, n = arguments.dims[first + 1]
    _require((batch, k) == (batches, depth))
    sizes = {"M": m, "N": n, "K": k}
    rows = {_contiguous(arguments, first, "MK"), _contiguous(arguments, first + 1, "KN"), "N"}
    dims = tuple((name, size) for name, size in sizes.items() if name in rows)
    return replace(gemm(m, k, n, dims, prod(batch)), format=_format(arguments, first))


def _convolution(padding: int, stride: int, dilation: int, arguments: Arguments) -> Product:
    """A convolution whose settings are at these argument positions."""
    (batch, channels, *image), (channels_out, channels_in, *window) = arguments.dims[:2]
    settings = [_numbers(arguments.values[i], len(image)) for i in (padding, stride, dilation)]
    output = [
        (size + 2 * pad - gap * (width - 1) - 1) // step + 1
        for size, width, pad, step, gap in zip(image, window, *settings, strict=True)
    ]
    _require(channels % max(1, channels_in) == 0 and min(output, default=0) >= 0)
    dims = (("C_in", channels_in), ("C_out", channels_out))
    values, groups = batch * channels_out * prod(output), channels // max(1, channels_in)
    return replace(convolution(values, channels_in, window, groups, dims), format=_format(arguments, 0))


def _transposed_convolution(groups: int, arguments: Arguments) -> Product:
    """Every value of the image meets the whole window; the number of groups is at this argument position."""
    image, (channels_in, channels_out, *window) = arguments.dims[:2]
    parts = int(arguments.values[groups])
    _require(image[1] == channels_in)
    dims = (("C_in", channels_in // parts), ("C_out", channels_out))
    return replace(
        convolution(prod(image), channels_out, window, parts, dims),
        reduces=channels_in > parts or parts == 1,
        format=_format(arguments, 0),
    )


def _convolution_backward(arguments: Arguments) -> Product:
    """dgrad and wgrad, each as many FLOPs as fprop, as far as the output mask asks for them."""
    gradient, image, weight = arguments.dims[:3]
    transposed, mask = arguments.values[7] == "True", arguments.values[10]
    _require(gradient[0] == image[0] and weight[0] == (image if transposed else gradient)[1])
    wanted = re.findall(r"True|False", mask)[:2].count("True")
    summed, made = (gradient, image) if transposed else (image, gradient)
    dims, groups = (("C_in", weight[1]), ("C_out", weight[0])), summed[1] // max(1, weight[1])
    return replace(convolution(wanted * prod(made), weight[1], weight[2:], groups, dims), format=_format(arguments, 0))


def _attention(
    query: int, causal: int, arguments: Arguments, *, heads_first: bool = False, backward: bool = False
) -> Product:
    """Fused attention: two products forward, five backward; a causal mask skips half of each."""
    (batch, *middle, depth), key, value = arguments.dims[query : query + 3]
    heads, rows = middle if heads_first else middle[::-1]
    columns = key[2] if heads_first else key[1]
    _require((batch, depth) == (key[0], key[-1]) and key[:-1] == value[:-1])
    share = 1.0 if arguments.values[causal] in ("", "False", "0") else 0.5
    passes = share * (2.5 if backward else 1.0)
    found = attention(passes * batch * heads * rows, columns, depth, value[-1])
    return replace(found, format=_format(arguments, query))


def _grouped(arguments: Arguments) -> Product:
    """Groups share out the rows or the depth of a flat operand, so that each of its rows is multiplied once."""
    left, right = arguments.dims[:2]
    batch = left[0] if len(left) == len(right) == 3 else 1
    _require(left[-1] == right[-2])
    found = gemm(left[-2], left[-1], right[-1], (("N", right[-1]), ("K", left[-1])), batch)
    return replace(found, format=_format(arguments, 0))


Reader = Callable[[Arguments], Product]


def _named(names: str, reader: Reader) -> dict[str, Reader]:
    return {f"aten::{name}": reader for name in names.split()}


SHAPED: Mapping[str, Reader] = {
    **_named("mm bmm _scaled_mm _scaled_mm_v2 _int_mm", partial(_gemm, 0)),
    **_named("addmm addmm_ baddbmm baddbmm_ _addmm_activation", partial(_gemm, 1)),
    **_named("_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2", _grouped),
    "aten::cudnn_convolution": partial(_convolution, 2, 3, 4),
    "aten::cudnn_convolution_relu": partial(_convolution, 4, 3, 5),
    "aten::cudnn_convolution_add_relu": partial(_convolution, 6, 5, 7),
    "aten::miopen_convolution": partial(_convolution, 3, 4, 5),
    "aten::_conv_depthwise2d": partial(_convolution, 5, 4, 6),
    "aten::conv_depthwise3d": partial(_convolution, 5, 4, 6),
    "aten::cudnn_convolution_transpose": partial(_transposed_convolution, 6),
    "aten::miopen_convolution_transpose": partial(_transposed_convolution, 7),
    "aten::convolution_backward": _convolution_backward,
    "aten::_flash_attention_forward": partial(_attention, 0, 8),
    "aten::_flash_attention_backward": partial(_attention, 1, 11, backward=True),
    "aten::_efficient_attention_forward": partial(_attention, 0, 9),
    "aten::_efficient_attention_backward": partial(_attention, 1, 14, backward=True),
    "aten::_scaled_dot_product_cudnn_attention": partial(_attention, 0, 6, heads_first=True),
    "aten::_scaled_dot_product_cudnn_attention_backward": partial(_attention, 1, 14, heads_first=True, backward=True),
    "aten::_cudnn_attention_forward": partial(_attention, 0, 10, heads_first=True),
    "aten::_cudnn_attention_backward": partial(_attention, 1, 14, heads_first=True, backward=True),
    "flash_attn::_flash_attn_forward": partial(_attention, 0, 5),
    "flash_attn::_flash_attn_backward": partial(_attention, 1, 11, backward=True),
}


def _numbers(text: str, count: int) -> list[int]:
    """`[16, 16]` as numbers; one number stands for all dimensions."""
    found = [int(number) for number in re.findall(r"-?\d+", text)]
    return found * count if len(found) == 1 else found
