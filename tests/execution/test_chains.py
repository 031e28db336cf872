"""Products of three and more factors: the pairs and the order are torch's, and each product is rounded."""

from itertools import pairwise

import pytest
import torch
from emulation_models import Inside, plan_for, weights
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.execution.apply import apply
from precaudit.execution.chains import chained
from precaudit.instrument.torch_function import Call

EQUATIONS = ["ij,jk,kl->il", "ij,jk,kl", "bij,bjk,kl,l->bi", "...ij,...jk,kl->...il", "ij,ij,ij->", "ij,kl,jk,lm"]
EQUATIONS += ["...i,ij,j"]
SIZES = dict(zip("bijklm", (2, 3, 4, 5, 6, 3), strict=True))


def factors_of(equation):
    terms = equation.partition("->")[0].split(",")
    return [
        weights(*(SIZES[label] for label in term.replace("...", "b")), seed=seed).double()
        for seed, term in enumerate(terms)
    ]


def in_pairs(function, *args, **kwargs):
    return chained(Call(function, args, kwargs), lambda pair, factors: pair(*factors))


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("path", [False, True])
def test_einsum_in_pairs_equals_torchs(equation, path):
    factors = factors_of(equation)
    along = {"path": [1, 2, *(0, 1) * (len(factors) - 2)]} if path else {}
    torch.testing.assert_close(in_pairs(torch.einsum, equation, factors, **along), torch.einsum(equation, factors))


class Shapes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "mv", "dot", "bmm"):
            self.products.append([factor.numel() for factor in args])
        return result


@given(st.lists(st.integers(1, 6), min_size=4, max_size=6), st.booleans(), st.booleans())
@example([2, 3, 6, 3], False, False)  # of equal cost either way
@example([1, 4, 5, 3, 1], True, True)
def test_the_order_of_a_chain_is_torch_s(sizes, starts_with_vector, ends_with_vector):
    sizes[0], sizes[-1] = 1 if starts_with_vector else sizes[0], 1 if ends_with_vector else sizes[-1]
    factors = [weights(a, b, seed=i) for i, (a, b) in enumerate(pairwise(sizes))]
    factors[0] = factors[0][0] if starts_with_vector else factors[0]
    factors[-1] = factors[-1][:, 0] if ends_with_vector else factors[-1]
    with Shapes() as ours:
        result = in_pairs(torch.linalg.multi_dot, factors)
    with Shapes() as torch_s:
        expected = torch.linalg.multi_dot(factors)
    assert sorted(ours.products) == sorted(torch_s.products)  # the right half may be taken before the left
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6, 7, -1, -2])
def test_a_power_is_made_of_rounded_products(n):
    """A square of 300 is past what float16 has, whose inverse's square is not."""
    matrix = 300 * torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(in_pairs(torch.matrix_power, matrix, n), torch.linalg.matrix_power(matrix, n))
    for power in (torch.matrix_power, torch.linalg.matrix_power):
        model = Inside(lambda outer, x, power=power: power(input=x, n=n))
        with apply(model, plan_for(model, "float16"), execution="emulated"):
            found = model(matrix)
        assert bool(found.isfinite().all()) is (n < 2)
        with apply(model, plan_for(model, "float32"), execution="emulated"):
            torch.testing.assert_close(model(matrix), torch.linalg.matrix_power(matrix, n))


@pytest.mark.filterwarnings("ignore:torch.chain_matmul")
@pytest.mark.parametrize(
    "product",
    [
        lambda *factors: torch.einsum("ij,jk,kl->il", *factors),
        lambda *factors: torch.linalg.multi_dot(factors),
        lambda *factors: torch.chain_matmul(*factors),
    ],
)
def test_overflowing_intermediate_product_is_infinite(product):
    a, b, c = torch.full((4, 4), 200.0), torch.full((4, 4), 200.0), torch.full((4, 4), 1e-3)
    model = Inside(lambda outer, x: product(x, b, c))
    with apply(model, plan_for(model, "float16"), execution="emulated"):
        assert model(a).isinf().all()
    with apply(model, plan_for(model, "bfloat16"), execution="emulated"):
        torch.testing.assert_close(model(a), a @ b @ c, rtol=0.01, atol=0)
