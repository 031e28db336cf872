import math
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.verification.repair import least_promotion

modules = st.integers(1, 10).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(1e-6, 1.0), min_size=n, max_size=n), st.lists(st.integers(1, 20), min_size=n, max_size=n)
    )
)


def cheapest(errors, budget, costs):
    """Brute force over all subsets."""
    subsets = chain.from_iterable(combinations(errors, size) for size in range(len(errors) + 1))
    enough = (s for s in subsets if sum(e for name, e in errors.items() if name not in s) <= budget)
    return min(sum(costs[name] for name in s) for s in enough)


@settings(max_examples=60, deadline=None)
@given(modules, st.floats(0.01, 0.99), st.sampled_from([1.0, 1e-9, 1e6]))
def test_cost_is_that_of_brute_force(numbers, share, unit):
    errors = {f"layer{i}": unit * e for i, e in enumerate(numbers[0])}
    costs = {f"layer{i}": c for i, c in enumerate(numbers[1])}
    budget = share * sum(errors.values())
    chosen = least_promotion(errors, budget, costs)
    left = sum(error for name, error in errors.items() if name not in chosen)
    assert left <= budget * (1 + 1e-5)
    assert sum(costs[name] for name in chosen) <= cheapest(errors, budget, costs)


def test_one_culprit_is_promoted_alone():
    errors = {"a": 1e-6, "culprit": 0.5, "b": 2e-6}
    assert least_promotion(errors, 0.01, {}) == ("culprit",)


def test_a_budget_far_below_the_culprit_still_counts():
    errors = {"culprit": 1.0, "a": 1e-5, "b": 6e-7, "c": 3e-7}
    assert least_promotion(errors, 1e-6, {}) == ("culprit", "a")
    assert least_promotion(errors, 8e-7, {"b": 2.0}) == ("culprit", "a", "c")


def test_two_cheap_modules_before_a_dear_one():
    errors = {"head": 0.02, "a": 0.01, "b": 0.01}
    assert least_promotion(errors, 0.02, {"head": 10.0, "a": 1.0, "b": 1.0}) == ("a", "b")
    assert least_promotion(errors, 0.02, {"head": 1.5, "a": 1.0, "b": 1.0}) == ("head",)


def test_within_budget_nothing_is_promoted():
    assert least_promotion({"a": 0.001}, 0.01, {}) == ()
    assert least_promotion({}, 0.0, {}) == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_goes_first(bad):
    assert least_promotion({"a": 0.001, "b": bad}, 0.01, {}) == ("b",)
    assert least_promotion({"a": 0.02, "b": bad, "c": 0.001}, 0.01, {}) == ("a", "b")


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_without_a_budget_everything_that_errs_is_promoted(budget):
    assert least_promotion({"a": 0.1, "exact": 0.0, "b": 1e-9}, budget, {}) == ("a", "b")
