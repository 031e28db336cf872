"""Outputs against float32's: closed forms for the error, brute force for top-1."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precaudit.checking.entries import Pair, paired
from precaudit.checking.matching import add_batch, faulty, looks_like_scores, lost, named_outputs
from precaudit.checking.records import OutputMatch

CALL = ((torch.zeros(4, 3, dtype=torch.long),), {})


def matched(output, reference, tolerance=0.01, call=CALL):
    return add_batch(OutputMatch("float16", "model", ""), Pair(output, reference), call, tolerance)


@pytest.mark.parametrize("relative", [1.0, 0.5, 2.0**-8, 2.0**-20])
def test_snr_of_a_relative_error_in_decibels(relative):
    reference = torch.randn(50, dtype=torch.float64)
    match = matched(reference * (1 + relative), reference)
    assert match.relative_error == pytest.approx(relative)
    assert match.snr_db == pytest.approx(-20 * math.log10(relative))


def test_exact_and_empty_outputs():
    exact = matched(torch.ones(3), torch.ones(3))
    assert (exact.relative_error, exact.snr_db) == (0.0, math.inf)
    assert matched(torch.zeros(3), torch.zeros(3)).relative_error == 0.0
    assert matched(torch.ones(3), torch.zeros(3)).relative_error == math.inf
    assert matched(torch.ones(3), torch.zeros(3)).snr_db == -math.inf
    nothing = matched(torch.empty(0), torch.empty(0))
    assert (nothing.relative_error, nothing.snr_db, nothing.agreement) == (None, None, None)


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_sums_over_batches_equal_those_of_the_whole(count, seed):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(count, 6, 5, generator=generator)
    output = reference + 0.1 * torch.randn(reference.shape, generator=generator)
    match = OutputMatch("float16", "model", "")
    for got, wanted in zip(output, reference, strict=True):
        match = add_batch(match, Pair(got, wanted), CALL, 0.01)
    whole = float((output - reference).double().norm() / reference.double().norm())
    assert match.relative_error == pytest.approx(whole, rel=1e-6)
    assert match.agreement == pytest.approx(float((output.argmax(-1) == reference.argmax(-1)).double().mean()))
    assert (match.batches, match.rows) == (count, 6 * count)


def test_near_ties_do_not_count_as_disagreement():
    """The first row flips between classes 0.001 apart, the second between classes 1 apart; rms is about 1."""
    reference = torch.tensor([[1.0, 1.001, -1.0], [1.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    output = torch.tensor([[1.001, 1.0, -1.0], [2.0, 1.0, -1.0], [3.0, 0.0, 0.0]])
    match = matched(output, reference)
    assert (match.rows, match.agreeing, match.near_ties) == (3, 1, 1)


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((4, 10), (4, 3), True),
        ((2, 7, 10), (2, 7), True),
        ((4, 1), (4, 3), False),
        ((4,), (4, 3), False),
        ((2, 3, 8, 8), (2, 3, 8, 8), False),
        ((4, 3), (4, 3), False),
    ],
)
def test_class_scores_are_recognized_by_their_shape(shape, inputs, expected):
    assert looks_like_scores(torch.zeros(shape), ((torch.zeros(inputs),), {})) is expected


def test_masked_scores_are_not_compared():
    reference = torch.tensor([[1.0, -math.inf, 2.0]])
    match = matched(reference.clone(), reference)
    assert (match.values, match.nonfinite, match.reference_nonfinite) == (2, 0, 0)
    assert match.relative_error == 0.0
    assert match.agreement == 1.0


def test_nonfinite_values_under_the_plan_and_in_float32_are_counted_apart():
    reference = torch.tensor([[1.0, math.nan, 2.0, math.inf, -math.inf]])
    output = torch.tensor([[math.inf, math.nan, 2.0, math.inf, -math.inf]])
    match = matched(output, reference)
    assert (match.values, match.nonfinite, match.reference_nonfinite) == (1, 1, 2)
    assert lost(output, reference) == 1
    assert faulty(reference) == 2


def test_output_of_another_shape_counts_as_nonfinite():
    match = matched(torch.ones(2, 3), torch.ones(3, 2))
    assert (match.values, match.nonfinite) == (0, 6)
    assert lost(torch.ones(2, 2), torch.ones(3, 3)) == 9


def test_another_number_of_rows_does_not_count_as_nonfinite():
    assert lost(torch.ones(2, 4), torch.ones(3, 4)) == 0
    assert lost(torch.tensor([[1.0, math.inf]]), torch.ones(3, 2)) == 1


def test_outputs_are_named_by_their_path():
    pair = torch.return_types.max((torch.ones(2), torch.ones(2, dtype=torch.long)))
    value = {"logits": torch.ones(1), "hidden": [torch.ones(1), {"deep": torch.ones(1)}], "ids": torch.ones(1).long()}
    assert [name for name, _ in named_outputs(value)] == ["logits", "hidden.0", "hidden.1.deep"]
    assert [name for name, _ in named_outputs(torch.ones(1))] == [""]
    assert [name for name, _ in named_outputs(pair)] == ["0"]
    assert list(named_outputs(None)) == []


BOXES = torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, 1.0, 8.0, 7.0], [1.0, 2.0, 3.0, 4.0], [6.0, 6.0, 7.0, 9.0]])
SCORES = torch.tensor([0.9, 0.702, 0.7, 0.5])


def match_of(got, wanted, name, call=CALL):
    return add_batch(OutputMatch("bfloat16", "model", name), paired(got, wanted, call)[name], CALL, 0.03)


def detections(scores=SCORES, boxes=BOXES):
    order = scores.argsort(descending=True)
    return {"0.boxes": boxes[order], "0.scores": scores[order]}


def test_nearly_tied_rows_may_swap_places():
    nudged = SCORES + torch.tensor([0.0, -0.003, 0.001, 0.0])
    match = match_of(detections(nudged), detections(), "0.boxes")
    assert (match.relative_error, match.rows, match.unpaired) == (0.0, 0, 0)
    assert match_of(detections(nudged), detections(), "0.scores").relative_error < 0.005


def test_scores_that_are_equal_after_rounding_count_as_sorted():
    got = {"0.boxes": BOXES[[1, 0, 2, 3]], "0.scores": torch.full((4,), 0.7)}
    wanted = {"0.boxes": BOXES, "0.scores": torch.tensor([0.7002, 0.7001, 0.7, 0.6999])}
    assert match_of(got, wanted, "0.boxes").relative_error == 0.0


@pytest.mark.parametrize(("batch", "listed"), [(2, True), (4, False)])
def test_constant_scores_are_a_list_unless_an_input_has_their_number(batch, listed):
    got, wanted = ({"boxes": boxes, "scores": torch.ones(4)} for boxes in (BOXES[[1, 0, 2, 3]], BOXES))
    match = match_of(got, wanted, "boxes", ((torch.zeros(batch, 3),), {}))
    assert (match.relative_error == 0.0) is listed


def test_tensor_with_a_column_of_scores_is_a_list():
    wanted = torch.cat([BOXES, SCORES[:, None]], 1).expand(2, -1, -1).clone()
    got = wanted[:, [0, 2, 1, 3]]
    got[..., 4] = wanted[..., 4]
    assert match_of({"": got}, {"": wanted}, "").relative_error < 0.001


@pytest.mark.parametrize("swap", [False, True])
def test_dropped_or_changed_rows_are_counted_and_the_others_compared(swap):
    got = detections()
    if swap:
        got["0.boxes"][3] = 100.0
    else:
        got = {name: value[:3] for name, value in got.items()}
    matches = [match_of(got, detections(), name) for name in got]
    assert [match.unpaired for match in matches] == [1, 0]
    assert [match.relative_error for match in matches] == [0.0, 0.0]


@pytest.mark.parametrize("left", [0, 4])
def test_rows_in_any_order_are_paired_and_missing_ones_counted(left):
    wanted = {"": BOXES[[2, 0, 3, 1]]}
    match = match_of({"": BOXES[:left]}, wanted, "")
    assert (match.nonfinite, match.unpaired) == (0, 4 - left)


def test_wrong_score_in_a_sorted_list_is_an_error():
    match = match_of(detections(SCORES * 1.2), detections(), "0.scores")
    assert match.relative_error == pytest.approx(0.2)


def test_class_scores_keep_their_rows():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(64, 10, generator=generator)
    match = match_of({"": wanted.flip(0)}, {"": wanted}, "")
    assert match.rows == 64
    assert match.relative_error > 1
