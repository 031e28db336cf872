"""What of an answer in eval mode is the plan's doing: how long is asked for it, and what mends it."""

import random
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from precaudit.model import Plan
from precaudit.running.evaluation import _PARTS, PlanComparison, _causes, evaluate
from precaudit.running.job import OutputDeviation


class Slow(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(("seconds", "calls"), [(60.0, 3), (2.5, 2), (0.0, 1)])
def test_search_stays_within_its_time(monkeypatch, seconds, calls):
    """Each takes a second."""
    model = Slow(4, 4)
    monkeypatch.setattr(time, "perf_counter", lambda: float(model.calls))
    comparison = PlanComparison(Plan("bfloat16"), lambda plan: nullcontext(), seconds)
    found = evaluate(model, (torch.ones(2, 4),), {}, comparison)
    assert model.calls == calls
    assert len(found.values) == 8
    assert (found.deviation is not None) is (calls == 3)


@contextmanager
def under(model, plan):
    model.low = plan is not None
    yield
    model.low = True


class Chooses(nn.Linear):
    """The better one of two, where a plan is active the other."""

    low = True

    def forward(self, x):
        best = super().forward(x).argmax(1)
        return nn.functional.one_hot(1 - best if self.low else best, 2).float()


class Keeps(Chooses):
    """The values of scores above 1, where a plan is active in another order."""

    def forward(self, x):
        kept = torch.tensor([1.0, 2.0])[self.weight.flatten() > 1]
        return kept.flip(0) if self.low else kept


@pytest.mark.parametrize(
    ("kind", "first", "second", "is_fault"),
    [
        (Chooses, 2 * 2**-11, 2**-11, False),  # rounded once, both are one, and the first is chosen as before
        (Chooses, 10 * 2**-11, 2**-11, False),  # no rounding of weights alone brings the second past the first
        (Chooses, 2 * 2**-3, 2**-3, True),
        (Keeps, 2 * 2**-11, 2**-11, False),  # any rounding changes how many are kept
        (Keeps, 2 * 2**-3, 2**-3, True),
    ],
)
def test_choice_that_other_roundings_change_is_no_fault(kind, first, second, is_fault):
    model, plan = kind(1, 2, bias=False), Plan("bfloat16", {"": "bfloat16"})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1 + first], [1 + second]]))
    far = evaluate(model, (torch.ones(16, 1),), {}, PlanComparison(plan, partial(under, model))).deviation
    assert far.is_fault(plan) is is_fault


class Noisy(nn.Linear):
    """Draws a number in eval mode too and, where a plan is active, others before."""

    low, draws = True, None

    def forward(self, x):
        for _ in range(self.extra if self.low else 0):
            self.draws()
        return super().forward(x) + self.draws()


@pytest.mark.parametrize("draws", [random.random, np.random.rand, lambda: torch.rand(())], ids=["py", "np", "torch"])
@pytest.mark.parametrize("extra", [0, 1])
def test_what_another_seed_changes_is_no_fault(draws, extra):
    """Equal draws give equal outputs; others may differ by as much as those of two seeds."""
    model, plan = Noisy(1, 2, bias=False), Plan("bfloat16", {"": "bfloat16"})
    model.draws, model.extra = draws, extra
    far = evaluate(model, (torch.zeros(4, 1),), {}, PlanComparison(plan, partial(under, model))).deviation
    assert (far.error > 0.01) is (far.chance > 0.01) is (extra > 0)
    assert not far.is_fault(plan)


class Halves(nn.Module):
    """Of two outputs the second is wrong by a half, in its first samples, where its layer has a plan."""

    def __init__(self, samples, unit):
        super().__init__()
        self.right, self.wrong, self.unit = nn.Identity(), nn.Identity(), unit
        self.samples, self.plan = samples, Plan("bfloat16", {"right": "bfloat16", "wrong": "bfloat16"})
        self.active = self.plan

    @contextmanager
    def under(self, plan):
        self.active = plan or Plan("float32", dict.fromkeys(self.plan.modules, "float32"))
        yield
        self.active = self.plan

    def forward(self, x):
        y = self.wrong(x) * self.unit
        y[: self.samples] *= 1.0 if self.active.modules["wrong"] == "float32" else 0.5
        return 1000 * self.right(x), y


def deviation(batch, samples, unit=1.0):
    model = Halves(samples, unit)
    comparison = PlanComparison(model.plan, model.under)
    return evaluate(model, (torch.ones(batch, 2),), {}, comparison).deviation, model.plan


@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_the_worst_output_is_judged_by_itself_in_any_unit_and_its_cause_is_named(unit):
    """A likelihood is as small, whose square is zero."""
    far, _ = deviation(4, 4, unit)
    assert far == OutputDeviation(pytest.approx(0.5), chance=0.0, causes=("wrong",))


@pytest.mark.parametrize(("batch", "samples", "is_fault"), [(7, 1, True), (8, 1, False), (8, 2, True), (7, 0, False)])
def test_one_sample_of_eight_or_more_may_differ(batch, samples, is_fault):
    """A near tie may be decided the other way."""
    far, plan = deviation(batch, samples)
    assert far.is_fault(plan) is is_fault
    left_out = batch >= 8
    assert far.error == pytest.approx(0.5 * (max(0, samples - left_out) / batch) ** 0.5)
    assert far.causes == (("wrong",) if is_fault else ())


@pytest.mark.parametrize(
    ("modules", "bad", "most"),
    [
        (1, {0}, 1),
        (40, {17}, 1),
        (8, {1, 2, 5, 6}, 4),
        (200, {3, 190}, 2),
        (200, set(range(0, 200, 2)), 200),  # in every group
        (200, set(range(100, 140)), 42),  # in whole groups
    ],
)
def test_modules_that_err_together_are_found_together(modules, bad, most):
    names, asked = [str(number) for number in range(modules)], []

    def without(group):
        asked.append(group)
        return len(bad - set(map(int, group))) ** 0.5

    found = _causes(Plan("bfloat16", dict.fromkeys(names, "bfloat16")), without, lambda group: without(group) < 0.1)
    assert bad <= set(map(int, found))
    assert len(found) <= most
    assert len(asked) < 3 * _PARTS


def test_one_of_two_sufficient_modules_is_named():
    names = [name for number in range(6) for name in (f"blocks.{number}.lin", f"blocks.{number}")]

    def without(group):
        return (6 - len({name.removesuffix(".lin") for name in group})) ** 0.5

    found = _causes(Plan("bfloat16", dict.fromkeys(names, "bfloat16")), without, lambda group: without(group) < 0.1)
    assert sorted(name.removesuffix(".lin") for name in found) == [f"blocks.{number}" for number in range(6)]


def test_no_cause_if_no_module_repairs_the_outputs():
    assert _causes(Plan("bfloat16", {"a": "bfloat16", "b": "bfloat16"}), len, lambda group: False) == ()
    assert _causes(Plan("bfloat16", {"a": "float32"}), len, lambda group: True) == ()
