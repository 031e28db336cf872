"""What sums in low precision lose: of gradients over several passes, and of repeated rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import seen

from precaudit.ownprecision.records import GradientSumLoss, RowSumLoss


@pytest.mark.parametrize(("passes", "lost"), [(2, False), (600, True)])
def test_low_gradient_accumulation_absorbs_addends(passes, lost):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(2):
            for _ in range(passes):
                (model(1 + 0.1 * torch.randn(1, 4).bfloat16()).float() / passes).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    (entry,) = seen(code, GradientSumLoss, steps=2)
    assert (entry.lost > 0.01) is lost


@pytest.mark.parametrize(("passes", "lost"), [(2, False), (600, True)])
def test_low_gradient_accumulation_with_float32_masters(passes, lost):
    """The gradients are clipped in place, handed over and dropped before the optimizer's step."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1).bfloat16()
        master = [parameter.detach().float() for parameter in model.parameters()]
        optimizer = torch.optim.SGD(master, lr=1e-3)
        for _ in range(2):
            for _ in range(passes):
                (model(1 + 0.1 * torch.randn(1, 4).bfloat16()).float() / passes).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            for parameter, copy in zip(model.parameters(), master, strict=True):
                copy.grad, parameter.grad = parameter.grad.float(), None
            optimizer.step()

    (entry,) = seen(code, GradientSumLoss, steps=2)
    assert (entry.lost > 0.01) is lost


@pytest.mark.parametrize(("rows", "count"), [(4, 1), (5000, 0)])
def test_repeated_rows_of_a_low_table(rows, count):
    def code():
        torch.manual_seed(0)
        model = nn.Embedding(rows, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            index = torch.randint(rows, (4000,))
            (F.embedding(index, model.weight.bfloat16()).float() - 1).square().mean().backward()
            optimizer.step()

    assert len([entry for entry in seen(code, RowSumLoss, steps=3) if entry.lost > 0.01]) == count


def test_repeated_rows_with_another_default_dtype():
    def code():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = nn.Embedding(4, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            (model(torch.randint(4, (4000,))).float() - 1).square().mean().backward()
            optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)

    (entry,) = seen(code, RowSumLoss, steps=1)
    assert 0 < entry.lost < 1


def test_repeated_rows_ignore_overflowed_gradients():
    def code():
        torch.manual_seed(0)
        model = nn.Embedding(4, 3)
        index = torch.randint(4, (4000,))
        (F.embedding(index, model.weight.bfloat16()).float() * math.inf).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()

    assert seen(code, RowSumLoss, steps=1) == []


@pytest.mark.parametrize("tied", [False, True])
def test_lookups_in_a_low_table_are_summed_apart(tied):
    """Whatever other steps and other uses of the table add to its gradient."""

    def code():
        torch.manual_seed(0)
        table, head = (nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
        model = nn.Sequential(table, head).bfloat16()
        if tied:
            head.weight = table.weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            index = torch.randperm(50)[:20]
            F.cross_entropy(model(index).float(), (index + 1) % 50).backward()
            optimizer.step()

    (entry,) = seen(code, RowSumLoss, steps=8)
    assert entry.fqn == "0"
    assert entry.lost < 1e-4
