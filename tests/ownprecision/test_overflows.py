"""Values that overflow are seen where it happens."""

import pytest
import torch
from watched import Dispatched, seen, train

from precaudit.ownprecision.records import Overflow


def test_overflow_is_reported_at_its_operation():
    entries = seen(
        lambda: train(after_step=lambda model: (torch.full((4,), 6e4).half() * 2).sum()), Overflow, steps=3
    )
    assert [(entry.op, entry.in_place, entry.place.path) for entry in entries] == [("mul", False, __file__)]


@pytest.mark.parametrize(
    ("make", "writes"),
    [
        (lambda x: x.mul_(300.0), True),
        (lambda x: x.__imul__(x.clone()), True),
        (lambda x: torch.mul(x, x, out=torch.zeros(4).half()), True),
        (lambda x: x.copy_(torch.full((4,), 1e9)), True),
        (lambda x: x.view(2, 2).addmm_(x.clone().view(2, 2), x.clone().view(2, 2)), True),
        (lambda x: torch.full((4,), 1e9).half(), False),
    ],
    ids=["mul_", "imul", "out", "copy_", "addmm_", "cast"],
)
def test_in_place_overflow_is_reported(make, writes):
    entries = seen(lambda: train(after_step=lambda model: make(torch.full((4,), 300.0).half())), Overflow, steps=3)
    assert [(entry.in_place, entry.place.path) for entry in entries] == [(writes, __file__)]


@pytest.mark.parametrize("precision", ["as-written", "float32"])
def test_product_overflow_inside_autocast_is_reported(precision):
    """Autocast would round the exact product too, against which it is held."""

    def multiply(model):
        with torch.autocast("cpu", torch.float16):
            torch.full((2, 4), 300.0) @ torch.full((4, 2), 300.0)

    entries = seen(lambda: train(after_step=multiply), Overflow, steps=3, precision=precision)
    assert [(entry.op, entry.amax) for entry in entries] == [("matmul", 300.0)] * (precision == "as-written")


def test_nonfinite_float32_results_are_no_overflow():
    def after_step(model):
        mask = torch.tensor([1.0, 0.0]).half()
        mask.log(), 1 / mask, mask.clone().log_()
        torch.full((4,), 300.0).half().square()

    entries = seen(lambda: train(after_step=after_step), Overflow, steps=3)
    assert [(entry.op, entry.amax) for entry in entries] == [("square", 300.0)]


def test_overflow_in_a_cast_is_reported_with_its_size():
    (entry,) = seen(lambda: train(after_step=lambda model: torch.tensor(80000).half()), Overflow, steps=3)
    assert (entry.op, entry.amax) == ("half", 80000.0)


def test_infinite_mask_is_no_overflow():
    def mask(model):
        masked = torch.zeros(4).half().masked_fill_(torch.ones(4).bool(), -float("inf"))
        masked.to(torch.float16).contiguous()  # the same tensor

    assert seen(lambda: train(after_step=mask), Overflow, steps=3) == []


def test_uninitialized_memory_is_no_overflow():
    def code():
        with torch.no_grad(), torch.random.fork_rng():
            for _ in range(20):
                torch.full((1000,), float("nan"), dtype=torch.bfloat16)
                torch.empty(1000, dtype=torch.bfloat16)

    assert seen(code, Overflow) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_hold_no_values_are_not_read(dtype):
    """Sharded optimizers allocate buffers of gigabytes in every step, of which a small model uses a page."""
    dispatched = Dispatched()

    def code():
        with dispatched:
            torch.empty(1000, dtype=dtype)

    seen(code, Overflow)
    assert dispatched.names == ["aten::empty"]
