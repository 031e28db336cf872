"""Sums by index, forward and backward, add value after value in half, as CUDA's atomics do."""

import pytest
import torch
from emulation_models import Inside, inside, plan_for, weights

from precaudit.execution.apply import apply
from precaudit.execution.atomics import SUMS, added_one_by_one
from precaudit.instrument.torch_function import Call
from precaudit.tracing.records import STORED_ONCE
from precaudit.tracing.shadow import local_errors

ROWS, COLUMNS = 7, 3
INDEX = torch.randint(0, ROWS, (20,), generator=torch.Generator().manual_seed(0))
ENTRIES = INDEX[:, None].expand(-1, COLUMNS)
FORMS = {
    "index_add": lambda base, values: base.index_add(0, INDEX, values, alpha=2),
    "index_add_": lambda base, values: (base * 1).index_add_(-2, INDEX.int(), values),
    "index_add_columns": lambda base, values: torch.index_add(base.t(), dim=1, index=INDEX, source=values.t()),
    "scatter_add": lambda base, values: torch.scatter_add(base, 0, ENTRIES, values),
    "scatter_add_": lambda base, values: (base * 1).scatter_add_(0, ENTRIES[:9, :2].clone(), values[:9, :2]),
    "scatter_reduce": lambda base, values: base.scatter_reduce(0, ENTRIES, values, reduce="sum"),
    "scatter_reduce_others": lambda base, values: base.scatter_reduce(0, ENTRIES, values, "sum", include_self=False),
    "scatter_reduce_mean": lambda base, values: torch.scatter_reduce(base, 0, ENTRIES, values, reduce="mean"),
    "scatter_reduce_mean_": lambda base, values: (base * 1).scatter_reduce_(
        -2, ENTRIES[:9, :2].clone(), values[:9, :2], "mean", include_self=False
    ),
    "index_select": lambda base, values: torch.index_select(base, 0, INDEX) * values,
    "gather": lambda base, values: base.t().gather(1, ENTRIES.t()) * values.t(),
}


@pytest.mark.parametrize("form", FORMS)
def test_sums_and_gradients_are_those_of_float64(form):
    """But for rounding; the index is of every shape that torch takes."""
    found = []
    for convert in (torch.Tensor.double, torch.Tensor.half):
        base, values = (convert(weights(n, COLUMNS, seed=n)).requires_grad_() for n in (ROWS, len(INDEX)))

        def computed(_, base=base, values=values):
            return FORMS[form](base, values)

        model = Inside(computed)
        with apply(model, plan_for(model, "float16"), execution="emulated"):
            result = model(base)
        weight = weights(*result.shape, seed=9)
        gradients = torch.autograd.grad((result * weight.to(result.dtype)).sum(), (base, values))
        found.append([t.double() for t in (result, *gradients)])
    for exact, low in zip(*found, strict=True):
        torch.testing.assert_close(low, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("name", "most"), [("bfloat16", 256), ("float16", 2048)])
@pytest.mark.parametrize("form", ["index_add", "index_add_", "scatter_add", "index_select", "gather"])
def test_bfloat16_index_sum_stops_growing(form, name, most):
    """In float32 they would come to 4096."""
    index = torch.zeros(4096, dtype=torch.long)

    def computed(model, x):
        ones = model.lin(x)[:1].expand(4096, 4) * 0 + 1
        if form in ("index_select", "gather"):
            read = ones[:1] * 1
            read.retain_grad()
            model.note("read", read)
            return (
                read.index_select(0, index) if form == "index_select" else read.gather(0, index[:, None].expand(-1, 4))
            )
        if form == "scatter_add":
            return ones.new_zeros(1, 4).scatter_add(0, index[:, None].expand(-1, 4), ones)
        total = ones.new_zeros(1, 4)
        return total.index_add(0, index, ones) if form == "index_add" else total.index_add_(0, index, ones)

    model = Inside(computed)
    with apply(model, plan_for(model, name), execution="emulated"):
        result = model(weights(2, 4))
        result.sum().backward()
    assert (model.seen["read"].grad if "read" in model.seen else result).eq(most).all()
    with apply(model, plan_for(model, "float32"), execution="emulated"):
        assert form in ("index_select", "gather") or model(weights(2, 4)).eq(4096).all()


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_a_mean_by_index_adds_its_values_and_its_count_in_half(value):
    """As torch does on CUDA: the count of 4096 values is 256 in bfloat16, and the sum of threes stops at 512."""
    index = torch.zeros(4096, 1, dtype=torch.long)

    def computed(model, x):
        values = model.lin(x)[:1, :1].expand(4096, 1) * 0 + value
        return values.new_zeros(1, 1).scatter_reduce(0, index, values, "mean", include_self=False)

    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(4096):
        total += value
    assert inside(computed, "bfloat16", weights(2, 4))[0] == total / 256


def test_local_error_of_a_stagnating_index_sum():
    values, index = torch.ones(4096, 4), torch.zeros(4096, dtype=torch.long)
    errors = local_errors(Call(torch.index_add, (torch.zeros(1, 4), 0, index, values), {}), ("bfloat16",))
    assert errors["bfloat16"].relative < 0.01  # float32 values
    marked = [inside(lambda _, x: x, "float32", t)[1] for t in (torch.zeros(1, 4), values)]
    for tensor in marked:
        tensor._precaudit_half = True
    errors = local_errors(Call(torch.index_add, (marked[0], 0, index, marked[1]), {}), ("bfloat16", "float16"))
    assert errors["bfloat16"].relative == pytest.approx(1 - 256 / 4096)
    assert errors["float16"].relative == pytest.approx(0.5)


def test_numbers_without_dimensions_are_summed_by_torch():
    number, index = torch.tensor(1.5).half().requires_grad_(), torch.tensor(0)
    for func, *args in ((torch.index_add, index, number), (torch.scatter_add, index, number), (torch.gather, index)):
        call = Call(func, (number, 0, *args), {})
        assert added_one_by_one(call)() == call() == (1.5 if func is torch.gather else 3.0)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_gradient_that_is_asked_to_be_sparse_is(sparse):
    values, entries = weights(4, 2).half().requires_grad_(), torch.tensor([[0, 1], [2, 0]])
    call = Call(torch.gather, (values, 0, entries), {"sparse_grad": sparse})
    found, expected = (torch.autograd.grad(each().sum(), values)[0] for each in (added_one_by_one(call), call))
    assert found.is_sparse is expected.is_sparse is sparse
    assert torch.equal(found.to_dense(), expected.to_dense())


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_results_are_laid_out_as_torch_s_are(dim):
    """A script may view them as another shape."""
    values, index = weights(4, 6, 5).half().transpose(0, 1), torch.tensor([0, 2, 2])
    some, entries = values.index_select(dim, index), torch.zeros_like(values, dtype=torch.long)[:, :3, :2]
    wanted = values.clone().requires_grad_()
    for func, *args in (
        (torch.index_add, values, dim, index, some),
        (torch.scatter_add, values, dim, entries, values[:, :3, :2]),
        (torch.index_select, wanted, dim, index),
        (torch.gather, wanted, dim, entries),
    ):
        call = Call(func, args, {})
        stands_in = added_one_by_one(call)
        assert stands_in is not call
        assert stands_in().stride() == call().stride()


def test_functions_that_do_not_sum_in_half_are_unchanged():
    half, single = weights(3, 2).half(), weights(3, 2)
    index = torch.tensor([0, 0, 1])
    entries = index[:, None].expand(-1, 2)
    for func, args, kwargs in (
        (torch.index_add, (single, 0, index, single), {}),
        (torch.index_add, (half, 0, index, single), {}),
        (torch.scatter_reduce, (half, 0, entries, half, "amax"), {}),
        (torch.scatter_reduce, (half, 0, entries, half), {"reduce": "prod", "include_self": False}),
        (torch.scatter_add, (half, 0, entries, half), {"out": half.clone()}),
        (torch.index_select, (half, 0, index), {}),
        (torch.mul, (half, half), {}),
    ):
        call = Call(func, args, kwargs)
        assert added_one_by_one(call) is call
    together = torch.vmap(lambda x: x.index_add(0, index, x))
    assert together(torch.stack([half, half])).shape == (2, 3, 2)


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_in_place_index_sum_in_float32(execution):
    """What it is written to is half all the same."""
    index = torch.zeros(4096, dtype=torch.long)

    def computed(model, x):
        ones = model.lin(x)[:1].expand(4096, 4) * 0 + 1
        total = ones.new_zeros(1, 4)
        model.note("total", total)
        return total.index_add_(0, index, ones).scatter_add_(0, index[:, None].expand(-1, 4), ones)

    model = Inside(computed)
    sums = [("", "index_add", "float32"), ("", "scatter_add", "float32")]
    with apply(model, plan_for(model, "bfloat16", ops=sums), execution=execution):
        result = model(weights(2, 4))
        result.sum().backward()
    assert result.eq(8192).all()
    assert model.seen["total"].dtype == torch.bfloat16


def test_the_planner_knows_these_sums():
    """It has no torch, and so a list of its own."""
    assert STORED_ONCE == SUMS
