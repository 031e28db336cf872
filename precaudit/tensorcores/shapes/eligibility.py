"""Which of a model's products Tensor Cores could run under a plan.

cuBLAS 11 and cuDNN 7.6.3 and later run products of any size on Tensor Cores; float8 products need aligned sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod

from precaudit.execution.policy import category
from precaudit.finding import finding
from precaudit.formats import FORMATS
from precaudit.hardware.peaks import Gpu
from precaudit.model import Finding, Op, Plan
from precaudit.model.fitting import format_of
from precaudit.tensorcores.shapes.alignment import misaligned
from precaudit.tensorcores.shapes.sizes import Dims, Product, attention, convolution, gemm
from precaudit.words import plural

Shape = tuple[int, ...]

MATTERS = 0.05


def work(op: Op) -> Product | None:
    """The product of one forward call, by its shapes; None for other ops, and where they don't say enough."""
    read = _PRODUCTS.get(op.op)
    try:
        return read(op) if read else None
    except (IndexError, ValueError, ArithmeticError):
        return None


def flops(op: Op) -> float | None:
    """Forward FLOPs of one call, on average: as counted while it ran, or by its shapes."""
    found = work(op)
    return op.flops or (found.flops if found else None)


def with_flops(ops: Iterable[Op]) -> tuple[Op, ...]:
    return tuple(replace(op, flops=flops(op)) for op in ops)


def runs_in(op: Op, plan: Plan) -> str:
    """The format that a product computes in under the plan: autocast casts operands for those in its list only, and in
    a float8 region all but linear layers run in bfloat16."""
    planned = format_of(plan, op.fqn, op.op)
    if FORMATS[planned].storage_bits == 8 and op.op != "linear":
        planned = "bfloat16"
    reached = op.half or op.category == "lower" or FORMATS[planned].storage_bits >= 32
    return planned if reached else "float32"


def runs_on_tensor_cores(op: Op, plan: Plan, target: Gpu) -> bool:
    """Whether the op can run on the target's Tensor Cores in the format that it has under the plan."""
    format_name = runs_in(op, plan)
    if flops(op) is None or op.dtype == "float64" or target.peak(format_name) is None:
        return False
    must_align = FORMATS[format_name].storage_bits == 8
    found = work(op)
    if found is None:  # counted while it ran, as an einsum is
        return not must_align
    return found.reduces and not (must_align and misaligned(found.dims, format_name))


def eligible_share(ops: Sequence[Op], plan: Plan, target: Gpu) -> float | None:
    """Share of the known FLOPs that can run on the target's Tensor Cores under the plan; None without any."""
    total = sum(map(total_flops, ops))
    if not total or not target.nvidia:
        return None
    return sum(total_flops(op) for op in ops if runs_on_tensor_cores(op, plan, target)) / total


def unreached_findings(ops: Sequence[Op], plan: Plan) -> tuple[Finding, ...]:
    """PA403 for each kind of product that matters and stays float32 where the plan has a half format. One that autocast
    knows stays so where the script switches autocast off to keep it so."""
    total = sum(map(total_flops, ops))
    kinds: dict[str, list[Op]] = {}
    for op in ops:
        stays = runs_in(op, plan) == "float32" and format_of(plan, op.fqn, op.op) != "float32"
        if total_flops(op) and category(op.op) == "other" and stays:
            kinds.setdefault(op.op, []).append(op)
    found = ((same, sum(map(total_flops, same)) / total) for same in kinds.values())
    return tuple(_unreached(same, share) for same, share in found if share > MATTERS)


def _unreached(same: Sequence[Op], share: float) -> Finding:
    first = same[0]
    return finding(
        "PA403",
        "note",
        f"{where(same)} stays in float32 under the plan, with {share:.0%} of the work in products: autocast has no "
        "rule for it, and does not cast its operands",
        "cast its operands to half precision where it is called, or use products that autocast knows, such as matmul; "
        "then profile again",
        first.fqn,
        first.op,
        first.location,
        share_of_flops=share,
        layers=[op.fqn for op in same],
    )


def total_flops(op: Op) -> float:
    """Forward FLOPs over all calls."""
    return (flops(op) or 0.0) * op.calls


def where(same: Sequence[Op]) -> str:
    """The first of several similar operations, and how many other modules have one."""
    others = len({op.fqn for op in same}) - 1
    more = f", and that of {plural(others, 'more module')}," if others else ""
    return f"{same[0].fqn or 'the model'}: {same[0].op}{more}"


# ---------------------------------------------------------------- products by the name of their op


def _linear(op: Op) -> Product:
    image, weight = op.shapes[:2]
    rows = prod(image[:-1])
    outputs = weight[0] if len(weight) > 1 else 1
    dims = (("in_features", image[-1]), ("out_features", outputs))
    return gemm(rows, image[-1], outputs, dims)


def _gemm(first: int, op: Op) -> Product:
    """[.., M, K] by [.., K, N], batches broadcast, with either a vector as `torch.matmul` takes it. Where all batches
    share a factor, torch multiplies it once: by the other's batches, stacked."""
    left, right = op.shapes[first : first + 2]
    m, k = left[-2] if len(left) > 1 else 1, left[-1]
    n = right[-1] if len(right) > 1 else 1
    dims, batch = (("K", k), ("N", n)), prod(_broadcast(left[:-2], right[:-2]))
    if prod(right[:-2]) == 1:
        return gemm(m * batch, k, n, dims)
    if prod(left[:-2]) == 1:  # trained, as a weight is
        return gemm(m, k, n * batch, dims)
    return gemm(m, k, n, dims, batch)


def _grouped(op: Op) -> Product:
    """Groups share out the rows or the depth of a flat operand, so that each of its rows is multiplied once."""
    left, right = op.shapes[:2]
    batch = left[0] if len(left) == len(right) == 3 else 1
    return Product(2.0 * batch * left[-2] * left[-1] * right[-1], (("K", left[-1]), ("N", right[-1])))


def _broadcast(one: Shape, other: Shape) -> Shape:
    width = max(len(one), len(other))
    padded = [(1,) * (width - len(shape)) + shape for shape in (one, other)]
    return tuple(max(pair) if 0 not in pair else 0 for pair in zip(*padded, strict=True))


def _convolution(op: Op) -> Product:
    """Strides and padding are not recorded, but the size of the result is."""
    image, (channels_out, channels_in, *window) = op.shapes[:2]
    groups = image[-len(window) - 1] // channels_in
    dims = _channels(channels_in, channels_out // groups, groups)
    return convolution(_result(op), channels_in, window, groups, dims)


def _result(op: Op) -> float:
    """How many values a call makes."""
    result = op.tensor("activation")
    if result is None:
        raise ValueError
    return result.stats.numel / op.calls


def _convolution_tbc(op: Op) -> Product:
    """Time, batch, channels; the weight is [window, in_channels, out_channels]."""
    window, channels_in, channels_out = op.shapes[1]
    return convolution(_result(op), channels_in, (window,), 1, _channels(channels_in, channels_out, 1))


def _bilinear(op: Op) -> Product:
    """A bilinear layer: one input times the weight; the product with the other input is no matrix product."""
    first, (outputs, size, other) = op.shapes[0], op.shapes[2]
    found = gemm(prod(first[:-1]), size, outputs * other, (("in1_features", size), ("in2_features", other)))
    return replace(found, flops=found.flops + 2.0 * prod(first[:-1]) * outputs * other)


def _transposed_convolution(op: Op) -> Product:
    """The bias tells the groups; without one there is one, for grouped decoders are rare and shapes don't show them."""
    image, (channels_in, channels_out, *window), *bias = op.shapes
    groups = bias[0][0] // channels_out if bias else 1
    dims = _channels(channels_in // groups, channels_out, groups)
    return replace(
        convolution(prod(image), channels_out, window, groups, dims), reduces=channels_in > groups or groups == 1
    )


def _channels(channels_in: int, channels_out: int, groups: int) -> Dims:
    """The sizes of one group's product."""
    each = " per group" if groups > 1 else ""
    return (f"in_channels{each}", channels_in), (f"out_channels{each}", channels_out)


def _attention(op: Op) -> Product:
    """Both products in full, though fused kernels skip what a causal mask hides."""
    query, key, value = op.shapes[:3]
    return attention(prod(query[:-1]), key[-2], query[-1], value[-1])


def _recurrent(op: Op) -> Product:
    """All matrices of all layers and directions, applied at every time step."""
    steps = prod(op.shapes[0][:-1])
    matrices = [shape for shape in op.shapes[1:] if len(shape) == 2]
    recurrent_size = op.shapes[1][-1] if len(op.shapes[1]) > 1 else op.shapes[2][-1]
    dims = (("input_size", op.shapes[0][-1]), ("hidden_size", recurrent_size))
    return Product(2.0 * steps * sum(map(prod, matrices)), dims, reduces=steps > 1)


_PRODUCTS: Mapping[str, Callable[[Op], Product]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "linalg_matmul"), partial(_gemm, 0)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), partial(_gemm, 1)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "conv_tbc": _convolution_tbc,
    "bilinear": _bilinear,
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
