"""The fused scaler against the plain gradient."""

import pytest
import torch
from torch import nn

from precaudit.measuring.arms import FusedScaler


def stepped(scaler, model, inputs):
    """One step as the events publish it; the gradients that the optimizer found."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = model(inputs).sum()
    loss.backward(*scaler.backward_starts([loss], [None]))
    scaler.gradients_ready(optimizer)
    found = [p.grad for p in model.parameters()]
    scaler.step_ended(optimizer)
    return found


def test_the_optimizer_finds_unscaled_gradients():
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    found = stepped(FusedScaler(2.0**16, model.parameters), model, inputs)
    assert torch.equal(found[0], inputs.sum(0).expand(3, 4))
    assert torch.equal(found[1], torch.full((3,), 5.0))


def test_a_step_that_overflowed_is_skipped_and_the_scale_halved():
    model = nn.Linear(4, 3)
    scaler = FusedScaler(2.0**16, model.parameters)
    assert stepped(scaler, model, torch.full((5, 4), float("inf"))) == [None, None]
    assert scaler.scale == 2.0**15
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert stepped(scaler, model, torch.ones(5, 4))[1].tolist() == [5.0] * 3


def test_a_scale_below_one_is_halved_too():
    model = nn.Linear(4, 3)
    scaler = FusedScaler(2.0**-5, model.parameters)
    stepped(scaler, model, torch.full((5, 4), float("inf")))
    assert scaler.scale == 2.0**-6


def test_sparse_gradients_are_unscaled():
    model = nn.Embedding(10, 2, sparse=True)
    (found,) = stepped(FusedScaler(8.0, model.parameters), model, torch.tensor([1, 3, 3]))
    assert found.is_sparse
    assert found.to_dense()[3].tolist() == [2.0, 2.0]


def test_a_script_without_an_optimizer():
    model = nn.Linear(2, 1)
    scaler = FusedScaler(4.0, model.parameters)
    loss = model(torch.ones(1, 2)).sum()
    loss.backward(*scaler.backward_starts([loss], [torch.tensor(3.0)]))
    assert model.bias.grad.item() == 12.0
    scaler.gradients_ready(None)
    assert model.bias.grad.item() == pytest.approx(3.0)
