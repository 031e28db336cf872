"""FLOPs of traced ops beside torch's own counter and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from precaudit.tensorcores.traces.products import SHAPED, Arguments, product, read_arguments


def counted(function) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def arguments(*tensors, values=(), types=()):
    return Arguments(
        dims=tuple(tuple(t.shape) if hasattr(t, "shape") else () for t in tensors),
        strides=tuple(tuple(t.stride()) if hasattr(t, "stride") else () for t in tensors),
        types=types,
        values=tuple(values),
    )


def test_products_match_torchs_counter():
    a, b, bias = torch.zeros(5, 7), torch.zeros(7, 3), torch.zeros(3)
    assert product("aten::mm", arguments(a, b)).flops == counted(lambda: a @ b)
    assert product("aten::addmm", arguments(bias, a, b)).flops == counted(lambda: torch.addmm(bias, a, b))
    x, y = torch.zeros(2, 5, 7), torch.zeros(2, 7, 3)
    assert product("aten::bmm", arguments(x, y)).flops == counted(lambda: torch.bmm(x, y))


@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation"), [(1, 1, 1, 1), (2, 2, 0, 1), (1, (2, 1), (0, 3), 2)]
)
def test_convolutions_match_torchs_counter(groups, stride, padding, dilation):
    image, weight = torch.zeros(2, 4, 16, 15), torch.zeros(6, 4 // groups, 3, 3)
    want = counted(lambda: torch.conv2d(image, weight, None, stride, padding, dilation, groups))
    values = ["", "", str(padding), str(stride), str(dilation), str(groups)]
    found = product("aten::cudnn_convolution", arguments(image, weight, values=values, types=("c10::Half",) * 2))
    assert found.flops == want
    assert found.format == "fp16"
    values.insert(2, "")
    assert product("aten::miopen_convolution", arguments(image, weight, None, values=values)).flops == want


@pytest.mark.parametrize("mask", [[True, True, False], [False, True, True], [True, False, False]])
def test_convolution_backward_follows_its_output_mask(mask):
    image, weight = torch.zeros(2, 4, 16, 15, requires_grad=mask[0]), torch.zeros(6, 4, 3, 3, requires_grad=mask[1])
    output = torch.conv2d(image, weight)
    want = counted(lambda: output.sum().backward())
    values = ["", "", "", "[0]", "[1, 1]", "[0, 0]", "[1, 1]", "False", "[0, 0]", "1", str(mask)]
    assert product("aten::convolution_backward", arguments(output, image, weight, values=values)).flops == want


def test_depthwise_convolutions_are_no_work_for_matrix_units():
    image, weight = torch.zeros(2, 4, 16, 15), torch.zeros(4, 1, 3, 3)
    values = ["", "", "1", "1", "1", "4"]
    assert not product("aten::cudnn_convolution", arguments(image, weight, values=values)).reduces
    given = [*[""] * 7, "False", "", "4", "[True, True, False]"]
    assert not product("aten::convolution_backward", arguments(image, image, weight, values=given)).reduces
    whole = arguments(torch.zeros(2, 6, 16, 15), image, torch.zeros(6, 4, 3, 3), values=given)
    assert product("aten::convolution_backward", whole).reduces
    grey, first = torch.zeros(2, 1, 16, 15), torch.zeros(4, 1, 3, 3)
    assert product("aten::cudnn_convolution", arguments(grey, first, values=values)).reduces


def test_fp4_sizes_are_doubled():
    types = ("c10::Float4_e2m1fn_x2",) * 2
    found = product("aten::_scaled_mm", Arguments(((64, 32), (32, 48)), ((32, 1), (1, 32)), types))
    assert (found.flops, found.format) == (2 * 64 * 64 * 48, "fp4")
    assert found.dims == (("N", 48), ("K", 64))


@pytest.mark.parametrize(("causal", "share"), [("False", 1.0), ("True", 0.5)])
def test_attention(causal, share):
    q, k = torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 12, 8)
    want = sdpa_flop_count(q.shape, k.shape, k.shape) * share
    heads_last = [t.transpose(1, 2) for t in (q, k, k)]
    flash = arguments(*heads_last, values=[""] * 8 + [causal])
    assert product("aten::_flash_attention_forward", flash).flops == want
    backward = arguments(None, *heads_last, values=[""] * 11 + [causal])
    assert (
        product("aten::_flash_attention_backward", backward).flops
        == sdpa_backward_flop_count(q.shape, q.shape, k.shape, k.shape) * share
    )
    cudnn = arguments(q, k, k, values=[""] * 6 + [causal])
    assert product("aten::_scaled_dot_product_cudnn_attention", cudnn).flops == want


def called(op, **given):
    """The arguments of an op as torch declares them: those given by name, and something else everywhere else."""
    names = [argument.name for argument in getattr(torch.ops.aten, op.removeprefix("aten::")).default._schema.arguments]
    assert given.keys() <= set(names)
    found = [given.get(name, "7") for name in names]
    return arguments(*found, values=["" if hasattr(value, "shape") else value for value in found])


@pytest.mark.parametrize("op", [op for op in SHAPED if "attention" in op])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_read_where_torch_declares_its_arguments(op, causal):
    q, k, v = torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 12, 8), torch.zeros(2, 4, 12, 16)
    backward = op.endswith("backward")
    want = sdpa_flop_count(q.shape, k.shape, v.shape) * (2.5 if backward else 1.0)
    mask = {"custom_mask_type": str(int(causal))} if "efficient" in op else {"is_causal": str(causal)}
    heads = (q, k, v) if "cudnn" in op else (t.transpose(1, 2) for t in (q, k, v))
    found = product(op, called(op, **dict(zip(("query", "key", "value"), heads, strict=True)), **mask))
    assert found.flops == want * (0.5 if causal else 1.0)


@pytest.mark.parametrize("op", [op for op in SHAPED if "conv" in op and "backward" not in op and "transpose" not in op])
def test_convolutions_are_read_where_torch_declares_their_arguments(op):
    sizes = (16, 15, 14) if "3d" in op else (16, 15)
    image, weight = torch.zeros(2, 4, *sizes), torch.zeros(6, 4, *[3] * len(sizes))
    settings = {"padding": (3, 2, 1), "stride": (2, 3, 1), "dilation": (1, 2, 3)}
    settings = {name: values[: len(sizes)] for name, values in settings.items()}
    convolve = torch.conv3d if "3d" in op else torch.conv2d
    want = counted(lambda: convolve(image, weight, None, settings["stride"], settings["padding"], settings["dilation"]))
    texts = {name: str(list(values)) for name, values in settings.items()}
    assert product(op, called(op, self=image, weight=weight, **texts)).flops == want


@pytest.mark.parametrize("op", [op for op in SHAPED if "transpose" in op])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions_match_torchs_counter(op, groups):
    image, weight = torch.zeros(2, 4, 6, 5), torch.zeros(4, 6 // (1 + (groups > 1)), 3, 3)
    want = counted(lambda: torch.conv_transpose2d(image, weight, None, 2, 1, 0, groups))
    found = product(op, called(op, self=image, weight=weight, groups=str(groups)))
    assert found.flops == want
    assert found.reduces == (groups < 4)
    assert found.dims == (("C_in", 4 // groups), ("C_out", weight.shape[1]))


@pytest.mark.parametrize(
    ("left", "right", "flops"),
    [
        ((40, 16), (3, 16, 24), 40 * 16 * 24),
        ((16, 40), (40, 24), 16 * 40 * 24),
        ((3, 40, 16), (3, 16, 24), 3 * 40 * 16 * 24),
    ],
)
def test_grouped_products_multiply_each_row_once(left, right, flops):
    found = product("aten::_grouped_mm", arguments(torch.zeros(left), torch.zeros(right), torch.zeros(3)))
    assert found.flops == 2 * flops


def test_attention_of_the_flash_attn_package():
    """By its own signatures: q, k, v, dropout, scale, causal; backward the gradient first, then six more tensors."""
    q, k = torch.zeros(2, 10, 4, 8), torch.zeros(2, 12, 4, 8)
    want = sdpa_flop_count((2, 4, 10, 8), (2, 4, 12, 8), (2, 4, 12, 8))
    there = arguments(q, k, k, values=["", "", "", "0.", "0.3", "True"])
    assert product("flash_attn::_flash_attn_forward", there).flops == want / 2
    back = arguments(q, q, k, k, q, values=[*[""] * 9, "0.", "0.3", "False"])
    assert product("flash_attn::_flash_attn_backward", back).flops == want * 2.5


def test_the_dimensions_to_align_are_the_contiguous_ones():
    """In wgrad the tokens are the reduced dimension of both operands and lie contiguous in neither."""
    gradient, inputs = torch.zeros(77, 40), torch.zeros(77, 24)
    assert product("aten::mm", arguments(gradient.t(), inputs)).dims == (("M", 40), ("N", 24))
    assert product("aten::mm", arguments(inputs, torch.zeros(40, 24).t())).dims == (("N", 40), ("K", 24))
    assert product("aten::mm", Arguments(((77, 24), (24, 40)))).dims == (("N", 40), ("K", 24))


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("aten::add", Arguments(((3, 4), (3, 4)))),
        ("aten::mm", Arguments()),
        ("aten::mm", Arguments(((3,), (3,)))),
        ("aten::cudnn_convolution", Arguments(((1, 2, 3, 3), (1, 2, 3, 3)))),
        ("aten::convolution_backward", Arguments(((1, 2), (1, 2), (1, 2)), values=("x",))),
        ("aten::_flash_attention_forward", Arguments(((4, 8), (4, 8), (4, 8)))),
        ("aten::mm", Arguments(((3, 4), (5, 3)))),
        ("aten::bmm", Arguments(((2, 3, 4), (3, 4, 5)))),
        ("aten::cudnn_convolution", Arguments(((1, 3, 8, 8), (4, 2, 3, 3)), values=("", "", "0", "1", "1"))),
        ("aten::cudnn_convolution", Arguments(((1, 2, 2, 8), (4, 2, 5, 3)), values=("", "", "0", "1", "1"))),
        ("aten::cudnn_convolution", Arguments(((1, 2, 8, 8), (4, 2, 3, 3)), values=("", "", "0", "0", "1"))),
        ("aten::cudnn_convolution_transpose", Arguments(((1, 2, 8, 8), (2, 4, 3, 3)), values=("0",) * 7)),
        ("aten::mm", Arguments(((3, 10**400), (10**400, 3)))),
        (
            "aten::convolution_backward",
            Arguments(((1, 5, 6, 6), (1, 2, 8, 8), (4, 2, 3, 3)), values=(*[""] * 7, "False", "", "", "[True, True]")),
        ),
        (
            "aten::_flash_attention_forward",
            Arguments(((2, 10, 4, 8), (2, 12, 4, 16), (2, 12, 4, 8)), values=("",) * 8 + ("False",)),
        ),
    ],
)
def test_missing_arguments_make_a_product_unknown(op, given):
    assert product(op, given) is None


def test_recorded_arguments_of_any_kind():
    assert read_arguments({}) == Arguments()
    assert read_arguments({"Input Dims": 3, "Input type": None}) == Arguments()
    assert read_arguments({"Input dims": [[2, 3]]}).dims == ((2, 3),)  # kineto's tb_plugin reads both spellings
    found = read_arguments({"Input Dims": [[2, 3], [[1], [2]], "x", None, [-2, 3]], "Input type": ["float", 3]})
    assert found.dims == ((2, 3), (), (), (), ())
    assert found.types == ("float", "3")
