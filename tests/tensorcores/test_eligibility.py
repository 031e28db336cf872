"""FLOPs against torch's own counter, what Tensor Cores can take, and advice on padding."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from precaudit.hardware.peaks import get_gpu
from precaudit.model import Op, OpFormat, Plan, TensorRecord, TensorStats
from precaudit.tensorcores.shapes.eligibility import eligible_share, flops, runs_in, unreached_findings, work
from precaudit.tensorcores.shapes.padding import alignment_findings

BF16, FLOAT8 = Plan(default="bfloat16"), Plan(default="float8_e4m3")
H100, A100, V100 = map(get_gpu, ("h100", "a100", "v100"))


def made(name, *shapes, result=0, calls=1, fqn="layer", dtype="float32"):
    stats = TensorStats(numel=result * calls)
    return Op(fqn, name, calls, "lower", None, (TensorRecord("activation", stats),), shapes=shapes, dtype=dtype)


def linear(rows, inputs, outputs, **details):
    return made("linear", (rows, inputs), (outputs, inputs), (outputs,), **details)


CALLS = [
    (F.linear, [(4, 7, 12), (5, 12), (5,)], {}),
    (torch.matmul, [(3, 4), (4, 5)], {}),
    (torch.matmul, [(2, 1, 3, 4), (6, 4, 5)], {}),
    (torch.mm, [(3, 4), (4, 5)], {}),
    (torch.bmm, [(2, 3, 4), (2, 4, 5)], {}),
    (torch.addmm, [(5,), (3, 4), (4, 5)], {}),
    (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], {}),
    (F.conv1d, [(2, 3, 17), (6, 3, 5), (6,)], {"stride": 2}),
    (F.conv2d, [(2, 3, 9, 8), (6, 3, 3, 2)], {"padding": 1, "dilation": 2}),
    (F.conv2d, [(2, 8, 9, 8), (6, 4, 3, 3)], {"groups": 2}),
    (F.conv3d, [(2, 3, 5, 6, 7), (4, 3, 2, 2, 2)], {}),
    (F.conv_transpose1d, [(2, 3, 9), (3, 4, 3)], {}),
    (F.conv_transpose2d, [(2, 3, 5, 6), (3, 4, 2, 2)], {"stride": 2}),
    (F.conv_transpose2d, [(2, 4, 5, 6), (4, 3, 2, 2), (6,)], {"groups": 2}),
    (F.conv_transpose3d, [(2, 3, 4, 4, 4), (3, 2, 2, 2, 2)], {}),
    (F.scaled_dot_product_attention, [(2, 3, 7, 8), (2, 3, 5, 8), (2, 3, 5, 6)], {}),
]


@pytest.mark.parametrize(("function", "shapes", "settings"), CALLS)
def test_flops_are_those_of_torchs_counter(function, shapes, settings):
    tensors = [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = function(*tensors, **settings)
    op = made(function.__name__, *shapes, result=result.numel(), calls=3)
    assert counter.get_total_flops() > 0
    assert flops(op) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "shapes", "groups", "channels"),
    [
        ("conv2d", [(2, 8, 9, 8), (6, 4, 3, 3)], 2, (4, 3)),
        ("conv2d", [(2, 4, 9, 8), (6, 4, 3, 3)], 1, (4, 6)),
        ("conv_tbc", [(9, 2, 8), (3, 8, 6)], 1, (8, 6)),
        ("conv_transpose2d", [(2, 8, 5, 6), (8, 3, 2, 2), (6,)], 2, (4, 3)),
        ("conv_transpose2d", [(2, 8, 5, 6), (8, 3, 2, 2)], 1, (8, 3)),
    ],
)
def test_channels_to_pad_are_those_of_one_group(name, shapes, groups, channels):
    each = " per group" if groups > 1 else ""
    dims = dict(work(made(name, *shapes, result=600)).dims)
    assert dims == dict(zip((f"in_channels{each}", f"out_channels{each}"), channels, strict=True))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((8, 1, 16), (16, 4)),
        ((2, 8, 1, 16), (16, 4)),
        ((8, 3, 16), (16,)),
        ((16,), (16, 4)),
        ((16,), (8, 16, 4)),
        ((5, 16), (8, 16, 1)),
        ((1, 16), (8, 16, 4)),
        ((8, 1, 16), (8, 16, 4)),
        ((8, 3, 16), (8, 16, 1)),
    ],
)
def test_products_are_folded_as_torch_folds_them(left, right):
    """A product with a vector is what torch calls `mv`, or has one row or column."""
    products = []

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.mv.default):
                rows, columns = args[0].shape[-2], args[1].shape[-1] if args[1].dim() > 1 else 1
                products.append(rows > 1 and columns > 1)
            return function(*args, **(kwargs or {}))

    with Called():
        torch.matmul(torch.randn(left, requires_grad=True), torch.randn(right, requires_grad=True))
    op = made("matmul", left, right)
    assert [bool(eligible_share([op], BF16, H100))] == products


def test_products_that_torchs_counter_does_not_know():
    result = torch.conv_tbc(torch.randn(10, 4, 6), torch.randn(3, 6, 8), torch.zeros(8), 1)
    assert flops(made("conv_tbc", (10, 4, 6), (3, 6, 8), (8,), result=result.numel(), calls=2)) == 2 * 40 * 8 * 3 * 6
    # each row: an outer product's worth of the first input by the weight, then the other input
    assert flops(made("bilinear", (5, 7, 6), (5, 7, 4), (8, 6, 4), (8,))) == 2 * 35 * 8 * (6 * 4 + 4)
    assert eligible_share([made("bilinear", (5, 6), (5, 4), (8, 6, 4))], BF16, H100) == 1.0


@pytest.mark.parametrize("gates", [("lstm", 4), ("gru", 3)])
def test_recurrent_layers_apply_every_matrix_at_every_step(gates):
    name, count = gates
    matrices = [(count * 20, 16), (count * 20, 20), (count * 20,), (count * 20, 20), (count * 20, 20)]
    states = [(2, 3, 20)] * (2 if name == "lstm" else 1)
    one_step = 2 * sum(shape[0] * shape[1] for shape in matrices if len(shape) == 2)
    assert flops(made(name, (7, 3, 16), *states, *matrices)) == 7 * 3 * one_step
    assert flops(made(name, (21, 16), (7,), *states, *matrices)) == 7 * 3 * one_step  # a packed sequence


def test_an_audit_records_what_is_needed_for_flops():
    import precaudit

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Flatten(), torch.nn.Linear(72, 16))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 8, 8))
    with precaudit.audit(model, every=1) as audit:
        for _ in range(2):
            model(torch.randn(2, 3, 8, 8)).sum().backward()
    ops = audit.report().ops
    assert sum((flops(op) or 0) * op.calls for op in ops) == 2 * counter.get_total_flops()


@pytest.mark.parametrize(
    "op",
    [
        made("einsum", (2, 3), (3, 4)),
        made("softmax", (2, 3)),
        made("linear"),
        made("linear", ()),
        made("bmm", (2, 3)),
        made("conv2d", (1, 2), (3,)),
        Op("", "conv2d", 1, "lower", None, (), shapes=((1, 3, 8, 8), (4, 3, 3, 3))),
        made("scaled_dot_product_attention", (2, 3), (2,), (3,)),
    ],
)
def test_unknown_flops_are_none(op):
    assert flops(op) is None
    assert eligible_share([op], BF16, H100) is None


shapes = st.lists(st.lists(st.integers(0, 9), max_size=5).map(tuple), max_size=6)
names = st.sampled_from(["linear", "matmul", "addmm", "conv2d", "conv_transpose2d", "lstm", "mv"])


@given(names, shapes)
def test_any_shapes_give_an_answer(name, shapes):
    op = made(name, *shapes, result=5)
    found = flops(op)
    assert found is None or found >= 0
    share = eligible_share([op], BF16, H100)
    assert share is None or 0 <= share <= 1


def test_share_weighs_by_flops_and_calls():
    ops = [linear(8, 16, 16, calls=3, fqn="a"), linear(8, 16, 32, fqn="b")]
    plan = Plan(default="bfloat16", modules={"a": "bfloat16", "b": "float32"})
    assert eligible_share(ops, plan, H100) == pytest.approx(3 / 5)
    assert eligible_share(ops, Plan(), H100) == 0.0


def test_a_card_takes_only_its_own_formats():
    op = [linear(64, 64, 64)]
    assert eligible_share(op, BF16, V100) == 0.0
    assert eligible_share(op, Plan(default="float16"), V100) == 1.0
    assert eligible_share(op, Plan(default="float8_e4m3"), A100) == 0.0
    assert eligible_share(op, Plan(default="tf32"), A100) == 1.0
    assert eligible_share(op, BF16, get_gpu("mi300x")) is None


def test_float8_needs_aligned_dimensions_and_half_does_not():
    op = [linear(64, 64, 72)]
    assert eligible_share(op, Plan(default="float8_e4m3"), H100) == 0.0
    assert eligible_share([linear(64, 64, 50257)], BF16, H100) == 1.0


@pytest.mark.parametrize(
    "op",
    [
        made("mv", (64, 64), (64,)),
        linear(1, 64, 64),
        linear(64, 64, 64, dtype="float64"),
        made("conv2d", (2, 32, 8, 8), (32, 1, 3, 3), result=2 * 32 * 36),
    ],
)
def test_what_no_matrix_unit_computes(op):
    assert eligible_share([op], BF16, H100) == 0.0


def test_an_exception_of_the_plan_decides_an_operations_format():
    plan = Plan(default="bfloat16", ops=(OpFormat("layer", "linear", "float32"),))
    assert eligible_share([linear(8, 16, 16)], plan, H100) == 0.0


def test_counted_flops_are_used_without_dimensions():
    op = dataclasses.replace(made("einsum", (2, 3), (3, 4)), flops=48.0)
    assert flops(op) == 48.0
    assert eligible_share([op], BF16, H100) == 1.0


def test_all_but_linear_layers_run_in_bfloat16_in_a_float8_region():
    einsum = dataclasses.replace(made("einsum", (2, 3), (3, 4)), flops=48.0)
    attention = made("scaled_dot_product_attention", *[(2, 8, 64, 40)] * 3)
    assert [runs_in(op, FLOAT8) for op in (einsum, attention, linear(64, 64, 72))] == [*["bfloat16"] * 2, "float8_e4m3"]
    assert eligible_share([einsum, attention], FLOAT8, H100) == 1.0
    assert not alignment_findings([attention], FLOAT8, H100)
    assert not unreached_findings([linear(96, 32, 64), grouped(half=True)], FLOAT8)


def grouped(half=False, fqn="experts"):
    """Experts' products, by a function that is in none of autocast's lists."""
    op = made("_grouped_mm", (96, 32), (4, 32, 64), fqn=fqn)
    return dataclasses.replace(op, category="other", half=half)


def test_a_grouped_product_multiplies_each_row_once():
    assert flops(grouped()) == flops(linear(96, 32, 64))
    assert flops(made("grouped_mm", (32, 96), (96, 64))) == flops(linear(96, 32, 64))
    batched = made("grouped_mm", (4, 8, 32), (4, 32, 64))
    assert flops(batched) == flops(linear(32, 32, 64))
    assert work(batched).dims == work(grouped()).dims == (("K", 32), ("N", 64))


def test_a_product_that_autocast_leaves_in_float32_is_not_counted_and_is_named():
    ops = [linear(96, 32, 64), grouped()]
    assert eligible_share(ops, BF16, H100) == 0.5
    (finding,) = unreached_findings(ops, BF16)
    assert (finding.rule, finding.severity, finding.fqn, finding.op) == ("PA403", "note", "experts", "_grouped_mm")
    assert "_grouped_mm stays in float32 under the plan, with 50% of the work" in finding.message


def test_experts_of_many_blocks_are_one_finding_also_where_each_is_a_small_share():
    ops = [linear(96, 32, 64, calls=40), *(grouped(fqn=f"{i}.experts") for i in range(40))]
    (finding,) = unreached_findings(ops, BF16)
    assert "and that of 39 more modules, stays in float32 under the plan, with 50%" in finding.message
    assert len(finding.evidence["layers"]) == 40


def test_products_with_half_operands_run_as_planned():
    assert not unreached_findings([linear(96, 32, 64), grouped(half=True)], BF16)
    assert eligible_share([grouped(half=True)], BF16, H100) == 1.0
    assert not unreached_findings([grouped()], Plan(default="float32"))
    assert eligible_share([grouped()], Plan(default="tf32"), H100) == 1.0
    assert not unreached_findings([linear(9600, 32, 64), grouped()], BF16)


def test_a_product_that_the_script_excludes_from_autocast_is_no_finding():
    """Its own `autocast(enabled=False)` region keeps a power spectrum from float16, say: no reason to cast it."""
    kept = dataclasses.replace(linear(96, 32, 64), half=False, category="other")
    assert eligible_share([kept], BF16, H100) == 0.0
    assert not unreached_findings([kept, linear(96, 32, 64)], BF16)


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda x, w: torch.einsum("bi,oi->bo", x, w), 2 * 8 * 16 * 16),
        (lambda x, w: torch.einsum("bi,bj,oi->oj", x, x, w), 2 * 8 * 16 * 16 + 2 * 16 * 16 * 16),
        (lambda x, w: torch.tensordot(x, w, dims=([1], [1])), 2 * 8 * 16 * 16),
        (lambda x, w: torch.linalg.multi_dot([x, w, w]), 4 * 8 * 16 * 16),
        (lambda x, w: torch.inner(x, w), 2 * 8 * 16 * 16),
    ],
)
def test_products_whose_shapes_do_not_tell_their_work_are_counted_while_they_run(call, count):
    import precaudit

    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            return call(x, self.weight)

    model = Product()
    with precaudit.audit(model, every=1) as audit:
        model(torch.randn(8, 16)).sum().backward()
    (op,) = [op for op in audit.report().ops if op.flops]
    assert op.flops == count
    assert eligible_share([op], BF16, H100) == (1.0 if op.category == "lower" else 0.0)


def test_a_modules_calls_of_different_sizes_count_each_with_its_own():
    import precaudit

    model, tokens = torch.nn.MultiheadAttention(40, 2), torch.randn(17, 3, 40)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens, tokens)
    with precaudit.audit(model, every=1) as audit:
        model(tokens, tokens, tokens)[0].sum().backward()
    products = [op for op in audit.report().ops if op.flops]
    assert sum(op.flops * op.calls for op in products) == counter.get_total_flops()
    (linear,) = [op for op in products if op.op == "linear"]
    assert (linear.calls, linear.shapes[1]) == (2, (120, 40))


def test_an_einsum_without_sums_is_no_product():
    from precaudit.instrument.torch_function import Call
    from precaudit.tracing.flops import counted_flops

    assert counted_flops(Call(torch.einsum, ("bi,i->bi", torch.ones(3, 4), torch.ones(4)), {})) is None
    assert counted_flops(Call(torch.einsum, ("bi,j->bi", torch.ones(3, 4)), {})) is None


def test_what_torch_can_not_count_is_audited_all_the_same():
    import precaudit

    model = torch.nn.Linear(3, 4)
    jagged = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    with precaudit.audit(model, every=1) as audit:
        model(jagged)
        model(torch.randn(2, 3)).sum().backward()
    assert audit.report().ops
