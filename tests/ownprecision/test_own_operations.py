"""What operations in low precision lose, and integers that they change."""

import pytest
import torch
from torch import nn
from watched import Dispatched, seen, train

from precaudit.ownprecision.records import Cancellation, ChangedIntegers, OpLoss


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (lambda: torch.arange(2000).float(), True),
        (lambda: torch.arange(2000), True),
        (lambda: torch.arange(200).float(), False),
        (lambda: 1000 * torch.randn(2000), False),
    ],
)
def test_integers_that_alias_in_a_cast(values, found):
    entries = seen(lambda: train(after_step=lambda model: values().to(torch.bfloat16)), ChangedIntegers, steps=3)
    assert bool(entries) is found


@pytest.mark.parametrize(("count", "found"), [(2000, True), (200, False)])
def test_integers_created_in_low_precision_alias(count, found):
    (entry,) = seen(lambda: train(after_step=lambda model: positions(count)), ChangedIntegers, steps=3) or (None,)
    assert (entry is not None) is found
    if entry:
        assert (entry.amax, entry.place.path) == (1999.0, __file__)


def positions(count):
    return torch.arange(count, dtype=torch.bfloat16).long()


class Recurrence(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.inputs, self.dtype = nn.Linear(4, 8), dtype

    def forward(self, x):
        values = self.inputs(x).to(self.dtype)
        total = 64.0 + values[:, 0]
        for step in range(1, 8):
            total = (total + torch.zeros_like(total)) + 0.1 * values[:, step]
        return total.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_absorbing_sums_have_module_and_line(dtype):
    def code():
        torch.manual_seed(0)
        model = Recurrence(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            model(torch.randn(32, 4)).sub(64).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    lost = [entry for entry in seen(code, OpLoss) if entry.lost > 0.25]
    assert [(entry.fqn, entry.place.path) for entry in lost] == [("", __file__)] * (dtype == torch.bfloat16)


class Degrees(nn.Module):
    """Counts the edges of two hubs in the dtype of the messages."""

    def __init__(self, edges, count):
        super().__init__()
        self.lin, self.target, self.count = nn.Linear(4, 1), torch.arange(edges) % 2, count

    def forward(self, x):
        messages = self.lin(x)
        degree = torch.zeros(2, dtype=messages.dtype)
        return messages / self.count(degree, self.target, torch.ones(len(self.target), dtype=messages.dtype))


def scattered(degree, target, ones):
    return degree.scatter_reduce(0, target, ones, "sum")


def added_in_place(degree, target, ones):
    return degree.index_add_(0, target, ones)


@pytest.mark.parametrize("edges", [100, 1200])
@pytest.mark.parametrize("count", [scattered, added_in_place])
def test_counts_in_half_are_reported_that_begin_at_zeros(edges, count):
    """Bfloat16 has no 257, so a count of ones stands still at 256."""

    def code():
        model = Degrees(edges, count)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                out = model(torch.ones(2, 4))
            out.sum().backward()
            optimizer.step()

    written = {"precision": "as-written", "execution": "emulated", "neutralize": False}
    lost = [entry for entry in seen(code, OpLoss, steps=2, **written) if entry.lost > 0.25]
    assert [entry.fqn for entry in lost] == [""] * (edges > 512)
    assert all(entry.lost == pytest.approx(1 - 256 / 600) for entry in lost)


@pytest.mark.parametrize("precision", ["own-casts", "as-written"])
def test_counts_that_a_script_casts_itself_stand_still_as_they_do_on_cuda(precision):
    """The CPU's kernel counts in float32 and rounds once."""
    rows, counted = torch.arange(2).repeat(600), []

    def code():
        def before_step(model):
            ones = torch.ones(len(rows), dtype=torch.bfloat16)
            counted.append(torch.zeros(2, dtype=torch.bfloat16).scatter_add_(0, rows, ones))

        train(before_step=before_step)

    lost = seen(code, OpLoss, steps=2, precision=precision, execution="emulated")
    assert [entry.op for entry in lost] == ["scatter_add"]
    assert lost[0].lost == pytest.approx(1 - 256 / 600)
    assert torch.equal(counted[0], torch.tensor([256, 256], dtype=torch.bfloat16))


@pytest.mark.parametrize(("size", "told"), [(1e-6, ["matmul"]), (1.0, [])], ids=["underflows", "fits"])
def test_low_products_outside_of_modules_are_reported(size, told):
    """As in an optimizer's step inside autocast; inside of modules the audit looks."""

    def after_step(model):
        gradient = size * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.float16):
            gradient @ gradient.T

    written = {"precision": "as-written", "execution": "emulated", "neutralize": False}
    entries = seen(lambda: train(after_step=after_step), OpLoss, steps=10, **written)
    assert [entry.op for entry in entries if entry.lost > 0.25] == told


@pytest.mark.parametrize(("size", "told"), [(1e-5, ["pow"]), (0.1, [])], ids=["underflows", "fits"])
def test_operations_on_half_are_compared_as_they_ran(size, told):
    """Autocast would take the squares of small gradients in float32; the norm of an optimizer by hand does not."""
    entries = seen(lambda: train(after_step=lambda model: torch.full((8,), size).half().pow(2).sum()), OpLoss)
    assert [entry.op for entry in entries if entry.lost > 0.25] == told


@pytest.mark.parametrize(
    ("angles", "told"),
    [
        (lambda x: (1000 * x).bfloat16(), ["cos", "sin"]),
        (lambda x: (1000 * x).round().bfloat16(), []),
        (lambda x: x.bfloat16(), []),
        (lambda x: 1000 * x, []),
    ],
    ids=["large", "whole", "small", "float32"],
)
def test_rounded_angles_are_reported(angles, told):
    def after_step(model):
        angle = angles(torch.rand(256, generator=torch.Generator().manual_seed(0)))
        angle.sin(), torch.cos(angle)

    entries = seen(lambda: train(after_step=after_step), OpLoss, steps=10)
    lost = [entry for entry in entries if entry.lost > 0.25]
    assert sorted(entry.op for entry in lost) == told


def drawn(seed):
    return torch.randn(4096, generator=torch.Generator().manual_seed(seed))


DIFFERENCES = {
    "alike": lambda: (drawn(0) + 300, drawn(1) + 300),
    "large": lambda: (drawn(0) * 300, drawn(1) * 300),
    "some alike": lambda: (drawn(0) + 300 * (drawn(2) > 1), drawn(1) + 300 * (drawn(2) > 1)),
}


@pytest.mark.parametrize("pair", DIFFERENCES)
@pytest.mark.parametrize("subtract", [torch.sub, lambda a, b: a.clone().sub_(b), lambda a, b: a + -b])
def test_what_rounding_changes_in_a_difference_is_as_large_as_it_is_measured(pair, subtract):
    """But for differences about as small as the rounding, of which only an average is known."""
    a, b = DIFFERENCES[pair]()
    low = a.bfloat16(), b.bfloat16()
    entries = seen(lambda: train(before_step=lambda model: subtract(*low)), Cancellation, steps=8)
    left = (low[0] - low[1]).float()
    true = ((left - (a - b)).abs() / left.abs())[left != 0].clamp(max=1).square().mean().sqrt()
    (found,) = [entry.lost for entry in entries if entry.fqn == ""]
    assert found == pytest.approx(float(true), rel=0.2)


@pytest.mark.parametrize(
    "subtract",
    [
        lambda a: a - a,
        lambda a: a.round() - a.round().roll(1),
        lambda a: a - 0.3,
        lambda a: a.float() - a.roll(1),
    ],
    ids=["same", "whole", "number", "float32"],
)
def test_exact_differences_lose_nothing(subtract):
    a = (1 + drawn(0) / 10).bfloat16()
    entries = seen(lambda: train(before_step=lambda model: subtract(a)), Cancellation, steps=8)
    assert all(entry.lost < 0.01 for entry in entries)


def windows(values):
    """Sums of windows, as differences of prefix sums."""
    sums = values.bfloat16().cumsum(-1)
    return lambda: sums[:, 8:] - sums[:, :-8]


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        (torch.rand(16, 512, generator=torch.Generator().manual_seed(0)), 0.3, 0.5),
        ((torch.rand(16, 1500, generator=torch.Generator().manual_seed(0)) < 0.7).float(), 0.5, 1.0),
        (torch.ones(16, 200), 0.0, 0.01),
        (torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), 0.0, 0.1),
    ],
    ids=["means", "counts", "exact counts", "short"],
)
def test_what_differences_of_long_sums_have_in_common_hides_no_rounding(values, least, most):
    """Window means of 0.5 vary by a fifth of that; counts are exact up to 256 alone."""
    subtract = windows(values)
    entries = seen(lambda: train(before_step=lambda model: subtract()), Cancellation, steps=8)
    assert least <= max(entry.lost for entry in entries if entry.fqn == "") <= most


def test_differences_of_every_other_step_are_seen():
    """Of two steps on each batch, the first has nothing to compare with."""
    a, b = (values.bfloat16() for values in DIFFERENCES["alike"]())
    steps = iter(range(100))
    entries = seen(lambda: train(before_step=lambda model: a - (b if next(steps) % 2 else a)), Cancellation, steps=10)
    assert max(entry.lost for entry in entries) > 0.25


def test_views_are_not_computed_once_more():
    """A view of a buffer of gigabytes costs nothing; the whole buffer in float32 would."""
    dispatched, buffer = Dispatched(), torch.zeros(1000, dtype=torch.bfloat16)

    def code():
        with dispatched:
            buffer.narrow(0, 0, 10).view(-1)

    seen(code, OpLoss)
    assert "aten::view" in dispatched.names
    assert "aten::_to_copy" not in dispatched.names


@pytest.mark.parametrize("around", [True, False])
def test_products_of_optimizers_inside_autocast_are_separate(around):
    class Whitening(torch.optim.SGD):
        def step(self):
            for parameter in (p for group in self.param_groups for p in group["params"] if p.dim() == 2):
                parameter.grad = ((parameter.grad @ parameter.grad.T) @ parameter.grad).float()
            super().step()

    def code():
        model = nn.Linear(4, 4)
        optimizer = Whitening(model.parameters(), 0.1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(torch.randn(8, 4)) @ torch.ones(4, 1)).square().mean()
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=around):
                optimizer.step()

    products = [e for e in seen(code, OpLoss, steps=3, precision="as-written") if e.op == "matmul"]
    assert [entry.region_steps for entry in products] == ([False, True] if around else [False])
