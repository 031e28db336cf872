"""The first operation that made a value non-finite, not those that passed it on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traced import tracing
from training_styles import Wrapping, numbers

INF = float("inf")


def faults_of(function, x=None, backward=False):
    model = Wrapping(function, lin=nn.Linear(4, 4))
    with tracing(watch=True) as traced:
        out = model(numbers(0, 3, 4) if x is None else x)
        if backward:
            out.sum().backward()
        return traced.trace.faults


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda self, x: (self.lin(x) * 1e30 * 1e30).relu() + 1, "mul"),
        (lambda self, x: self.lin(x).mul(0).log().exp(), "log"),
        (lambda self, x: (self.lin(x).abs() * 1000).exp().relu().mean(), "exp"),
        (lambda self, x: (self.lin(x) - 1000).sqrt().sum(), "sqrt"),
        (lambda self, x: F.normalize(self.lin(x) * 0, eps=0.0) * 2, "div"),
    ],
)
def test_only_the_producer_of_a_fault_is_named(function, op):
    faults = faults_of(function)
    assert [fault.op for fault in faults] == [op]
    assert faults[0].phase == "forward"
    assert faults[0].nonfinite > 0
    assert faults[0].input_amax is not None
    assert faults[0].location.path == __file__


def test_infinite_masks_are_no_fault():
    def function(self, x):
        scores = (x @ x.t()).masked_fill(torch.ones(3, 3).triu(1).bool(), -INF)
        other = torch.where(x > 0, x, torch.full_like(x, -INF))
        return self.lin(scores.softmax(-1) @ x) + other.softmax(-1).nan_to_num()

    assert faults_of(function, x=numbers(0, 3, 4).abs()) == ()


def test_softmax_of_a_fully_masked_row_is_the_producer():
    faults = faults_of(lambda self, x: self.lin((x * 0).masked_fill(x == x, -INF).softmax(-1)))
    assert [fault.op for fault in faults] == ["softmax"]


def test_infinity_minus_infinity_is_a_new_fault():
    faults = faults_of(lambda self, x: (x * 1e30 * 1e30) - (x * 1e30 * 1e30))
    assert [fault.op for fault in faults] == ["mul", "mul", "sub"]


def test_watched_results_can_be_saved_with_weights_only(tmp_path):
    def function(self, x):
        made = self.lin(x)
        made.relu()
        torch.save(made.detach(), tmp_path / "made.pt")
        return made

    model = Wrapping(function, lin=nn.Linear(4, 4))
    with tracing(watch=True):
        out = model(numbers(0, 3, 4))
    assert torch.equal(torch.load(tmp_path / "made.pt", weights_only=True), out)


def test_faults_of_the_backward_pass():
    faults = faults_of(lambda self, x: (self.lin(x) * 0).abs().sqrt(), backward=True)
    assert faults
    assert {fault.phase for fault in faults} == {"backward"}
    assert faults[0].op == "sqrt"


def test_a_loss_outside_of_the_model_is_no_fault_of_the_operation_that_it_reads():
    model = Wrapping(lambda self, x: self.lin(x).relu(), lin=nn.Linear(4, 4))
    with tracing(watch=True) as tracer:
        (0 * model(numbers(0, 3, 4))).sqrt().sum().backward()
    faults = tracer.trace.faults
    assert [(fault.phase, fault.op) for fault in faults] == [("given", "relu"), ("backward", "relu")]


def test_faults_under_no_grad_in_a_training_forward():
    def function(self, x):
        with torch.no_grad():
            h = (x * 1e30 * 1e30).relu()
        return self.lin(h)

    faults = faults_of(function, backward=True)
    assert (faults[0].phase, faults[0].op) == ("forward", "mul")


def test_number_of_faults_is_bounded():
    def function(self, x):
        for _ in range(200):
            x = self.lin(numbers(0, 3, 4)) * 1e30 * 1e30
        return x

    assert len(faults_of(function)) == 64


def test_faults_have_their_step():
    model = nn.Linear(4, 1)
    with tracing(watch=True, audited=lambda step: step >= 1) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for scale in (1e38, 1.0, 1e38):
            optimizer.zero_grad()
            model(torch.full((1, 4), scale) * 1e3).sum().backward()
            optimizer.step()
        assert [fault.step for fault in traced.trace.faults if fault.phase == "forward"] == []
        with torch.no_grad():
            model.weight.fill_(1e38)
        model(torch.full((1, 4), 1e3))
        assert [fault.step for fault in traced.trace.faults if fault.phase == "forward"] == [3]
