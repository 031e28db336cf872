"""What made a loss, or a gradient of a finite loss, non-finite."""

import math

import pytest
import torch
from torch import nn
from watched import seen

from precaudit.ownprecision.records import NonFiniteData, NonFiniteGradient, NonFiniteLoss, Overflow


def divided(level, error):
    return error / (1 - level)


def logarithm(level, error):
    return error * torch.log1p(-level)


def masked(level, error):
    """Infinite in every step, and harmless; the last one is not."""
    spread = torch.where(level > 1, torch.log(level - level), 0.0)
    return (error + spread) / (1 - level)


@pytest.mark.parametrize(("loss", "op"), [(divided, "div"), (logarithm, "log1p"), (masked, "div")])
@pytest.mark.parametrize("low", [True, False])
def test_operation_behind_a_nonfinite_loss_is_reported(loss, op, low):
    """A level that rounds to one leaves nothing to divide by."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        for step in range(4):
            level = torch.full((8, 1), 0.9999 if step else 0.5)
            level = level.half().float() if low else level
            loss(level, model(torch.randn(8, 4))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    found = [(entry.op, entry.step) for entry in seen(code, NonFiniteLoss)]
    assert found == ([(op, 1)] if low else [])


def test_operation_behind_the_last_nonfinite_loss_is_reported():
    def code():
        model = nn.Linear(4, 4)
        (model(torch.ones(8, 4)).square().sum() / torch.tensor(1e-9).half().float()).backward()

    (entry,) = seen(code, NonFiniteLoss)
    assert (entry.op, entry.step, entry.place.path) == ("div", 0, __file__)


class EdgeSoftmax(nn.Module):
    def forward(self, scores, target):
        total = torch.zeros(4, dtype=torch.float16).index_add(0, target, scores.exp().half())
        return (total / (total + 1e-16)).to(torch.float16).float() * scores


def test_operation_of_a_module_behind_a_nonfinite_loss_is_reported():
    """Float16 has no 1e-16, and nothing points at the last node. What passes on what it was given makes nothing."""

    def code():
        model = nn.Sequential(nn.Linear(4, 4), EdgeSoftmax())
        model[1](model[0](torch.ones(4)), torch.tensor([0, 1, 2, 0])).sum().backward()

    (entry,) = seen(code, NonFiniteLoss)
    assert (entry.op, entry.step, entry.place.path, entry.fqn) == ("div", 0, __file__, "1")
    assert entry.nan
    assert 1 < entry.amax < 2
    assert seen(code, Overflow) == []


class Masked(nn.Module):
    """A causal model with an infinite mask in a buffer."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    def forward(self, x):
        query, key = (self.scores(x) * 1).chunk(2, -1)
        return ((query @ key.mT + self.mask).softmax(-1) @ x).square().mean()


def spoilt(what, step):
    """Data of which one value is lost: in the first batch, or in a later one."""

    def code():
        torch.manual_seed(0)
        model, data, target = Masked(), torch.randn(6, 4, 4), torch.randn(6)
        {"data": data, "target": target}[what].view(6, -1)[step, 0] = math.nan
        optimizer = torch.optim.Adam(model.parameters())
        for x, y in torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, target)):
            optimizer.zero_grad()
            (model(x[0]) - y).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return code


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(("what", "numel"), [("data", 96), ("target", 6)])
def test_a_lost_loss_is_no_operation_s_where_the_data_were_lost(what, numel, step):
    (entry,) = seen(spoilt(what, step), NonFiniteData)
    assert (entry.step, entry.nan, entry.bad, entry.numel) == (step, True, 1, numel)
    assert entry.place.path == __file__
    assert seen(spoilt(what, step), NonFiniteLoss) == []


def test_lost_data_arrive_in_the_module_that_reads_them_first():
    """In the loop that is none."""
    lost = torch.full((4, 4), math.nan)
    (inside,) = seen(lambda: Masked()(lost).backward(), NonFiniteData)
    (outside,) = seen(lambda: Masked()(lost.flip(0)).backward(), NonFiniteData)
    assert [(entry.fqn, entry.op) for entry in (inside, outside)] == [("scores", "linear"), ("", "flip")]


def test_weights_that_training_has_lost_did_not_come_with_the_data():
    def code():
        model = Masked()
        with torch.no_grad():
            model.scores.weight.grad = torch.full((4, 4), math.nan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step()
        for _ in range(2):
            model(torch.ones(4, 4)).backward()
            optimizer.step()

    assert [entry for entry in seen(code, NonFiniteData) if entry.nan] == []


def rooted(values):
    return 0 * (values.abs() * torch.tensor([1.0, 0.0]).half() + 1e-16).sqrt()


def angle(values):
    return torch.acos((0 * values.float() + 0.9999).half().float())


@pytest.mark.parametrize("scale", [0.0, 2.0**-20, 64.0])
@pytest.mark.parametrize(("made", "op", "nan"), [(rooted, "sqrt", True), (angle, "acos", False)])
def test_operation_whose_backward_makes_the_gradient_of_a_finite_loss_nonfinite(made, op, nan, scale):
    """The infinite gradient of a scaled loss may be the scale's; nan from finite gradients is not."""

    def code():
        loss = made(nn.Linear(2, 2).half()(torch.ones(2).half())).float().sum()
        (torch.amp.GradScaler("cpu", init_scale=scale).scale(loss) if scale else loss).backward()

    entries = seen(code, NonFiniteGradient, audited=frozenset({0}), precision="as-written")
    found = [(entry.op, entry.nan, entry.place.path) for entry in entries]
    assert found == ([(op, nan, __file__)] if nan or scale <= 1 else [])


def test_a_nonfinite_loss_is_no_fault_of_a_backward():
    def code():
        (rooted(nn.Linear(2, 2).half()(torch.ones(2).half())).sum() * math.nan).backward()

    assert seen(code, NonFiniteGradient) == []


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizer_s_operation_behind_a_nonfinite_loss_is_reported(optimizer):
    """Mean squares and eps vanish in float16: the layers behind are given weights that are already lost."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 1)).half()
        step = optimizer(model.parameters())
        for _ in range(3):
            step.zero_grad()
            (model(torch.randn(8, 4).half()) * 1e-4).sum().backward()
            step.step()

    found = [(entry.op, entry.step, entry.place.path) for entry in seen(code, NonFiniteLoss)]
    assert found == [("addcdiv", 1, __file__)]
