"""Hard inputs: real ones with other values, and nothing else changed."""

import pytest
import torch

from precaudit.checking import inputs
from precaudit.formats import FORMATS

FLOATS = torch.tensor([[1.0, -2.0, 0.0], [0.25, float("-inf"), 4.0]])
IDS = torch.tensor([[3, 1, 2], [5, 0, 7]])
MASK = torch.tensor([[True, True, False], [True, False, True]])


def call(*args, **kwargs):
    return args, kwargs


def test_copy_of_a_call_shares_no_memory():
    original = call([FLOATS.clone()], ids=IDS)
    copy = inputs.copied(original)
    original[0][0][0].fill_(9.0)
    assert torch.equal(copy[0][0][0], FLOATS)
    assert copy[1]["ids"] is not IDS


def test_scaled_moves_floats_only_and_keeps_masks():
    (x, ids, flag), _ = inputs.scaled(call(FLOATS, IDS, 0.5), 10)
    assert x.tolist() == [[1024.0, -2048.0, 0.0], [256.0, float("-inf"), 4096.0]]
    assert ids is IDS
    assert flag == 0.5


def test_zeros_are_zeros_of_floats_or_else_the_first_index():
    (x, ids), _ = inputs.zeros(call(FLOATS, IDS))
    assert not x.any()
    assert ids is IDS
    (ids, mask), _ = inputs.zeros(call(IDS, MASK))
    assert not ids.any()
    assert mask is MASK


def test_integer_masks_and_scalar_inputs_stay_unchanged():
    count, mask = torch.tensor(6), MASK.long()
    (ids, kept, divisor), _ = inputs.zeros(call(IDS, mask, count))
    assert not ids.any()
    assert torch.equal(kept, mask)
    assert divisor == 6
    temperature = torch.tensor(0.5)
    given = call(FLOATS, temperature)
    for changed in (inputs.zeros(given), inputs.denormals(given, 2.0**-14), inputs.scaled(given, 10)):
        (x, same), _ = changed
        assert same == temperature
        assert not torch.equal(x, FLOATS)
    assert not inputs.has_floats(call(IDS, temperature))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float8_e4m3"])
def test_denormals_lie_below_the_smallest_normal(name):
    smallest = FORMATS[name].smallest_normal
    (x,), _ = inputs.denormals(call(FLOATS), smallest)
    assert float(x[x.isfinite()].abs().max()) == smallest / 2
    assert x[0, 1] == -smallest / 4
    assert x[1, 1] == float("-inf")
    assert x.dtype == torch.float32


@pytest.mark.parametrize("values", [torch.zeros(3), torch.empty(0, 3)])
def test_denormals_of_an_empty_tensor_are_empty(values):
    (x,), _ = inputs.denormals(call(values), 2.0**-14)
    assert torch.equal(x, values)


def test_first_sample_cuts_inputs_with_a_leading_batch_dimension():
    (x, ids, scale), kwargs = inputs.first_sample(call(FLOATS, IDS, torch.tensor(3.0), mask=MASK, table=torch.ones(5)))
    assert x.shape == ids.shape == kwargs["mask"].shape == (1, 3)
    assert scale.shape == ()
    assert kwargs["table"].shape == (5,)
    assert inputs.first_sample(call(FLOATS[:1])) is None
    assert inputs.first_sample(call(3)) is None


def test_length_is_that_of_a_sample():
    assert inputs.length(call(FLOATS, torch.ones(2, 4, 5))) == 20
    assert inputs.length(call(torch.ones(100))) == 0
