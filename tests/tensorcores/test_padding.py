"""Which dimensions are worth padding, by the step that the roofline predicts."""

from __future__ import annotations

import pytest

from precaudit.hardware.peaks import get_gpu
from precaudit.model import Layer, Op, Plan, TensorRecord, TensorStats
from precaudit.tensorcores.shapes.padding import alignment_findings

BF16 = Plan(default="bfloat16")
H100 = get_gpu("h100")


def made(name, *shapes, result=0, calls=1, fqn="layer", dtype="float32"):
    stats = TensorStats(numel=result * calls)
    records = TensorRecord("activation", stats), TensorRecord("activation_grad", stats)
    return Op(fqn, name, calls, "lower", None, records, shapes=shapes, dtype=dtype, half=True)


def linear(rows, inputs, outputs, **details):
    return made("linear", (rows, inputs), (outputs, inputs), (outputs,), result=rows * outputs, **details)


def test_a_vocabulary_is_padded_to_128_bytes():
    (finding,) = alignment_findings([linear(1024, 768, 50257, fqn="head")], BF16, H100)
    assert finding.severity == "warning"
    assert finding.suggestion.startswith("pad out_features from 50257 to 50304; predicted to save up to ")
    assert "head" in finding.message
    (wider,) = alignment_findings([linear(512, 768, 50259, fqn="head")], BF16, H100)
    assert finding.fingerprint == wider.fingerprint != finding.message


@pytest.mark.parametrize(
    ("format_name", "size", "target"),
    [("bfloat16", 1020, 1024), ("tf32", 101, 104), ("float8_e4m3", 4100, 4112), ("tf32", 5185, 5216)],
)
def test_padding_is_to_16_bytes_or_128_of_the_format(format_name, size, target):
    (finding,) = alignment_findings([linear(2**17, 4096, size)], Plan(default=format_name), H100)
    assert finding.evidence["padding"]["out_features"]["pad_to"] == target


def test_padding_saves_what_the_tenth_of_the_rate_costs_less_the_work_it_adds():
    """A product that is bound by arithmetic, alone in its step."""
    (finding,) = alignment_findings([linear(2**17, 4096, 777)], BF16, H100)
    assert finding.evidence["share_of_step"] == pytest.approx(1 - 0.1 * 784 / 777, rel=1e-6)


def test_small_shares_and_expensive_paddings_are_notes():
    big, small = linear(2**17, 4096, 4096, fqn="big"), linear(2**17, 4096, 50, fqn="small")
    assert [f.severity for f in alignment_findings([big, small], BF16, H100)] == ["note"]
    image = made("conv2d", (256, 3, 224, 224), (64, 3, 7, 7), result=256 * 64 * 112 * 112)
    (dear,) = alignment_findings([image], BF16, H100)
    assert (dear.severity, dear.suggestion.partition(" you ")[0]) == ("note", "measure before")
    assert "it adds 167% to the product's work" in dear.suggestion


def test_negligible_savings_are_not_reported():
    big, tiny = linear(2**17, 4096, 4096, fqn="big"), linear(2**17, 512, 10, fqn="tiny")
    assert alignment_findings([big, tiny], BF16, H100) == ()


def test_a_small_head_is_not_padded_in_a_launch_bound_step():
    """Ten classes are 12% of this model's FLOPs, and done before the next kernel is started."""
    body, head = linear(256, 64, 128, fqn="body"), linear(256, 128, 10, fqn="head")
    assert alignment_findings([body, head], BF16, H100) == ()


def test_a_cheap_padding_of_much_of_the_work_is_noted_where_it_saves_nothing_yet():
    """A vocabulary beside an optimizer that moves far more than the product."""
    head, states = linear(1024, 768, 50257), TensorRecord("optimizer_state", TensorStats(numel=10**12))
    (finding,) = alignment_findings([head], BF16, H100, [Layer("head", "Linear", 10**9, 1, (states,))])
    assert finding.severity == "note"
    assert finding.suggestion.startswith("pad out_features from 50257 to 50304; in steps as short as these ")


def test_more_audited_steps_save_the_same():
    one = alignment_findings([linear(1024, 768, 50257)], BF16, H100)
    ten = alignment_findings([linear(1024, 768, 50257, calls=10)], BF16, H100, steps=10)
    assert one[0].evidence["share_of_step"] == pytest.approx(ten[0].evidence["share_of_step"])


def test_aligned_or_unplanned_products_are_not_padded():
    assert alignment_findings([linear(2**16, 640, 50257)], Plan(), H100) == ()
    assert alignment_findings([linear(2**16 - 1, 640, 640)], BF16, H100) == ()
    assert alignment_findings([linear(2**16, 640, 50257)], BF16, get_gpu("mi300x")) == ()


@pytest.mark.parametrize(
    "op",
    [
        made("einsum", (2, 3), (3, 4)),
        made("linear"),
        made("mv", (64, 63), (63,)),
        linear(1, 64, 63),
        linear(2**20, 64, 50257, dtype="float64"),
        made("conv2d", (2, 33, 8, 8), (33, 1, 3, 3), result=2 * 33 * 36),
    ],
)
def test_what_no_matrix_unit_computes_is_not_padded(op):
    assert alignment_findings([op], BF16, H100) == ()


def test_modules_with_the_same_dimension_to_pad_are_one_finding():
    blocks = [linear(2**16, 1020, 1024, fqn=f"{i}.up") for i in range(30)]
    others = [linear(2**17, 1300, 2560, fqn="head"), linear(2**17, 1280, 1280, fqn="aligned")]
    up, head = alignment_findings([*blocks, *others], BF16, H100)
    assert (up.fqn, up.evidence["layers"]) == ("0.up", [block.fqn for block in blocks])
    assert "0.up: linear, and that of 29 more modules, with in_features = 1020" in up.message
    assert up.severity == "warning"
    assert "head: linear with in_features = 1300" in head.message
