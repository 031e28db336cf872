"""What a script's own low precision loses is seen where it happens, and nothing is seen where nothing is lost."""

import math
import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.instrument.names import ModuleNames
from precaudit.ownprecision.records import (
    BlurredInCast,
    ChangedIntegers,
    GradientSumLoss,
    LostGradient,
    NonFiniteData,
    NonFiniteGradient,
    NonFiniteLoss,
    NonFiniteStep,
    NonFiniteWeight,
    OpLoss,
    Overflow,
    RowSumLoss,
    RunawayScale,
    StateLoss,
    TrainedLow,
    VainDecay,
    VanishedInCast,
)
from precaudit.ownprecision.state import States
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def seen(code, kind, steps=30, **fields):
    fields = fields or {"precision": "own-casts"}
    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), steps), "x", **fields), code)
    assert result.error is None
    return result.own_precision.entries(kind)


def train(after_step=lambda model: None, before_step=lambda model: None, lr=0.05, features=lambda x: x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(100):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        F.mse_loss(model(features(x)), x.sum(1, keepdim=True)).backward()
        before_step(model)
        optimizer.step()
        after_step(model)


def averaging_all(decay, update):
    """Averages as torch.optim.swa_utils, timm and diffusers keep them: all parameters by one call."""
    average = []

    def after_step(model):
        parameters = [p.detach().bfloat16() for p in model.parameters()]
        if not average:
            average.extend(parameters)
        else:
            update(average, parameters, decay)

    return lambda: train(after_step=after_step, lr=0.01)


def lerp_all(average, parameters, decay):
    torch._foreach_lerp_(average, parameters, 1 - decay)


def mul_add_all(average, parameters, decay):
    torch._foreach_mul_(average, decay)
    torch._foreach_add_(average, parameters, alpha=1 - decay)


def made_anew(average, parameters, decay):
    average[:] = torch._foreach_add(torch._foreach_mul(average, decay), torch._foreach_mul(parameters, 1 - decay))


@pytest.mark.parametrize("update", [lerp_all, mul_add_all, made_anew])
def test_foreach_averages_are_followed(update):
    (entry,) = seen(averaging_all(0.999, update), StateLoss)
    assert entry.lost > 0.5
    assert entry.place.path == __file__
    assert all(entry.lost < 0.05 for entry in seen(averaging_all(0.5, update), StateLoss))


IN_PLACE, ANEW, CAST_BACK, BOTH = "in place", "anew", "in float32, and cast back", "both"
DETACHED, CLONED = torch.Tensor.detach, torch.clone
"""How a running value is written: the last two hand on what they make, as a sampler's chain or a hidden state is."""


def averaging(decay, dtype, written):
    average = []
    hand_on = written if callable(written) else lambda tensor: tensor

    def update(model):
        if not average:
            average.extend(p.detach().to(dtype) for p in model.parameters())
        elif written == IN_PLACE:
            with torch.no_grad():
                for mean, p in zip(average, model.parameters(), strict=True):
                    mean.mul_(decay).add_(p, alpha=1 - decay)
        elif written == BOTH:
            average[:] = [
                (mean * decay).add_(p.detach().to(dtype), alpha=1 - decay)
                for mean, p in zip(average, model.parameters(), strict=True)
            ]
        elif written == CAST_BACK:
            average[:] = [
                (mean.float() * decay + p.detach() * (1 - decay)).to(dtype)
                for mean, p in zip(average, model.parameters(), strict=True)
            ]
        else:
            average[:] = [
                hand_on(mean * decay + p.detach().to(dtype) * (1 - decay))
                for mean, p in zip(average, model.parameters(), strict=True)
            ]

    return lambda: train(after_step=update, lr=0.01)


def test_reused_memory_belongs_to_its_new_tensor():
    """Models come and go in a script, and what one has freed may hold another's running average."""
    names, model = ModuleNames(), nn.Linear(4, 4).bfloat16()
    names.add_model(model, "model")
    states, tensor = States(names), model.weight.data
    assert states.owner(tensor) == ("model", "", "")
    del model.weight
    model.register_buffer("average", tensor)
    states.step_ended()
    assert states.owner(tensor) == ("model", "", "average")
    assert states.owner(torch.ones(4, 4).bfloat16()) is None


@pytest.mark.parametrize("written", [IN_PLACE, ANEW, CAST_BACK, BOTH, DETACHED, CLONED])
def test_stagnating_bfloat16_average_loses_its_changes(written):
    (entry,) = seen(averaging(0.999, torch.bfloat16, written), StateLoss)
    assert entry.lost > 0.5
    assert entry.place.path == __file__
    assert entry.dtype == "bfloat16"


@pytest.mark.parametrize("written", [IN_PLACE, ANEW, CAST_BACK, BOTH, DETACHED, CLONED])
def test_fast_moving_average_loses_little(written):
    assert all(entry.lost < 0.05 for entry in seen(averaging(0.5, torch.bfloat16, written), StateLoss))


def test_followed_average_can_be_saved_and_loaded(tmp_path):
    average = {"mean": torch.zeros(4).bfloat16()}

    def update(model):
        average["mean"] = average["mean"] * 0.9 + model[0].weight[0].detach().bfloat16() * 0.1
        torch.save(average, tmp_path / "average.pt")
        assert torch.load(tmp_path / "average.pt", weights_only=True).keys() == average.keys()

    assert len(seen(lambda: train(after_step=update), StateLoss)) == 1


class CompensatedLion(torch.optim.Optimizer):
    """Signs of a momentum; what a half weight rounds away is kept, and added in the next step (Kahan's summation)."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            for name in () if state else ("momentum", "compensation"):
                state[name] = torch.zeros_like(parameter)
            update = (state["momentum"] * 0.9).add(parameter.grad, alpha=0.1).sign_()
            change = state["compensation"].add_(update, alpha=-1e-4)
            before = parameter.clone()
            parameter.add_(change)
            change.add_(before.sub_(parameter))


def test_a_sign_taken_in_place_changes_what_is_added_to_a_state():
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).bfloat16()
        optimizer = CompensatedLion(model.parameters())
        for _ in range(100):
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            F.mse_loss(model(x.bfloat16()).float(), x.sum(1, keepdim=True)).backward()
            optimizer.step()

    kept = [entry.lost for entry in seen(code, StateLoss) if entry.buffer == "compensation"]
    assert len(kept) == 2
    assert max(kept) < 0.01


def test_float32_average_is_not_recorded():
    assert seen(averaging(0.999, torch.float32, IN_PLACE), StateLoss) == []


@pytest.mark.parametrize("wrapped", [nn.Sequential.bfloat16, lambda model: nn.DataParallel(model.bfloat16())])
def test_low_weights_are_reported_with_their_module(wrapped):
    def code():
        torch.manual_seed(0)
        model = wrapped(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for _ in range(100):
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            F.mse_loss(model(x.bfloat16()).float(), x.sum(1, keepdim=True)).backward()
            optimizer.step()

    assert {entry.fqn for entry in seen(code, StateLoss) if entry.lost > 0.2} == {"0", "2"}


def test_optimizer_states_are_reported_apart():
    def lost(**way):
        def code():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 4), nn.Tanh()).bfloat16()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, **way)
            for _ in range(100):
                optimizer.zero_grad()
                model(torch.randn(16, 8).bfloat16()).square().mean().backward()
                optimizer.step()

        return {(entry.fqn, entry.buffer): entry.lost for entry in seen(code, StateLoss)}

    one_by_one = lost(foreach=False)
    assert one_by_one.keys() == {("0", ""), ("0", "exp_avg"), ("0", "exp_avg_sq")}
    assert one_by_one["0", ""] > 0.9
    assert max(one_by_one["0", name] for name in ("exp_avg", "exp_avg_sq")) < 0.01
    assert lost(foreach=True) == pytest.approx(one_by_one, rel=0.01)
    # One kernel holds all in float32 until it stores: what a state loses is its own rounding.
    fused = lost(fused=True)
    assert fused.keys() == one_by_one.keys()
    assert fused["0", ""] == pytest.approx(one_by_one["0", ""], rel=0.05)


def stepping_a_copy(write, before=lambda low, master: None):
    """`write(low, master)` takes the weights of a low model from the float32 copies that the optimizer steps;
    `before(low, master)` runs before that step."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).bfloat16()
        masters = [parameter.detach().float() for parameter in model.parameters()]
        optimizer = torch.optim.SGD(masters, lr=1e-4)
        for _ in range(100):
            x = torch.randn(32, 4)
            F.mse_loss(model(x.bfloat16()).float(), x.sum(1, keepdim=True)).backward()
            for low, master in zip(model.parameters(), masters, strict=True):
                master.grad, low.grad = low.grad.float(), None
                before(low.data, master.data)
            optimizer.step()
            for low, master in zip(model.parameters(), masters, strict=True):
                write(low.data, master)

    return code


@pytest.mark.parametrize(
    "write",
    [
        lambda low, master: low.copy_(master),
        lambda low, master: low.add_(1.0).copy_(other=master.bfloat16()),
    ],
)
def test_weights_copied_from_masters_absorb_nothing(write):
    assert seen(stepping_a_copy(write), StateLoss) == []


@pytest.mark.parametrize(
    "refill", [lambda low, master: master.copy_(low), lambda low, master: master.copy_(low.float())]
)
def test_masters_taken_from_their_low_weights_in_every_step_absorb(refill):
    entries = seen(stepping_a_copy(lambda low, master: low.copy_(master), refill), StateLoss)
    assert {entry.fqn for entry in entries if entry.lost > 0.5} == {"0", "2"}


def slowly(low, master):
    low.copy_(low.float().lerp(master, 1e-3))


def slowly_in_its_own_dtype(low, master):
    low.copy_(low * 0.999 + master.bfloat16() * 0.001)


def slowly_and_cast_back(low, master):
    low.copy_(low.float().lerp(master, 1e-3).to(low.dtype))


@pytest.mark.parametrize("write", [slowly, slowly_in_its_own_dtype, slowly_and_cast_back])
def test_copy_of_an_update_of_the_state_absorbs(write):
    entries = seen(stepping_a_copy(write), StateLoss)
    assert {entry.fqn for entry in entries if entry.lost > 0.5} == {"0", "2"}


COUNTS = {
    "index_add": lambda counts, rows, ones: counts.index_add_(0, rows, ones),
    "scatter_add": lambda counts, rows, ones: counts.scatter_add_(0, rows, ones),
    "scatter_reduce": lambda counts, rows, ones: counts.scatter_reduce_(0, rows, ones, "sum"),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("begin", "lost"), [(4096.0, True), (1.0, False)])
def test_counters_by_row_stand_still_where_half_has_no_next_integer(count, begin, lost):
    counts = torch.full((4,), begin, dtype=torch.float16)

    def after_step(model):
        COUNTS[count](counts, torch.arange(4), torch.ones(4, dtype=torch.float16))

    found = [entry.lost for entry in seen(lambda: train(after_step=after_step), StateLoss)]
    assert len(found) == 1
    assert (found[0] > 0.5) is lost


@pytest.mark.parametrize(("momentum", "lost"), [(0.003, True), (0.9, False)])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, partial(nn.InstanceNorm1d, track_running_stats=True)])
def test_low_running_statistics_are_named(norm, momentum, lost):
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(norm(4, momentum=momentum), nn.Flatten(), nn.Linear(32, 1)).bfloat16()
        model[0].running_mean.fill_(8.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            model((torch.randn(16, 4, 8) + 9).bfloat16()).float().square().mean().backward()
            optimizer.step()

    entries = {entry.buffer: entry.lost for entry in seen(code, StateLoss) if entry.buffer}
    assert entries.keys() == {"running_mean", "running_var"}
    assert (entries["running_mean"] > 0.5) is lost


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


class Dispatched(TorchDispatchMode):
    """The operations that torch runs, whoever calls them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_hold_no_values_are_not_read(dtype):
    """Sharded optimizers allocate buffers of gigabytes in every step, of which a small model uses a page."""
    dispatched = Dispatched()

    def code():
        with dispatched:
            torch.empty(1000, dtype=dtype)

    seen(code, Overflow)
    assert dispatched.names == ["aten::empty"]


def test_views_are_not_computed_once_more():
    """A view of a buffer of gigabytes costs nothing; the whole buffer in float32 would."""
    dispatched, buffer = Dispatched(), torch.zeros(1000, dtype=torch.bfloat16)

    def code():
        with dispatched:
            buffer.narrow(0, 0, 10).view(-1)

    seen(code, OpLoss)
    assert "aten::view" in dispatched.names
    assert "aten::_to_copy" not in dispatched.names


def test_unchecked_step_on_nonfinite_gradients():
    def spoil(model):
        model[0].weight.grad[0, 0] = float("inf")

    (entry,) = seen(lambda: train(before_step=spoil), NonFiniteStep, steps=3)
    assert (entry.step, entry.fqn) == (0, "0")
    assert seen(train, NonFiniteStep, steps=3) == []


def test_unchecked_step_on_nonfinite_gradients_of_a_closure():
    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def closure():
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            model.weight.grad[0, 0] = float("inf")

        optimizer.step(closure)

    (entry,) = seen(code, NonFiniteStep, steps=1)
    assert (entry.step, entry.place.path, entry.place.line) == (0, __file__, code.__code__.co_firstlineno + 9)


def test_step_skipped_by_the_scripts_scaler_counts_as_checked():
    """Where the script casts too, it is first run with its scaler off."""

    def spoil(model):
        torch.amp.GradScaler("cpu")
        model[0].weight.grad[0, 0] = float("inf")

    assert seen(lambda: train(before_step=spoil), NonFiniteStep, steps=3) == []


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


def test_gradients_of_a_nonfinite_loss_are_not_reported():
    def code():
        model = nn.Linear(4, 1).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            (model(torch.randn(8, 4).bfloat16()).square().mean() * (float("inf") if step else 1.0)).backward()
            optimizer.step()

    assert seen(code, NonFiniteStep, steps=3) == []


@pytest.mark.parametrize(("trained", "found"), [(True, True), (False, False)])
def test_frozen_low_weights_are_not_recorded(trained, found):
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4).bfloat16().requires_grad_(trained), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            model[1](model[0](torch.randn(8, 4).bfloat16()).float()).square().mean().backward()
            optimizer.step()

    assert bool(seen(code, TrainedLow)) is found
    assert bool(seen(code, StateLoss)) is found


@pytest.mark.parametrize(
    ("begin", "factor", "begins"), [(2.0**16, 4.0, [False]), (2.0**16, 1.0, []), (2.0**41, 1.0, [True])]
)
def test_unlimited_loss_scale_is_recorded(begin, factor, begins):
    """A scale that is high from the start does not run away."""

    def code():
        torch.manual_seed(0)
        model, scale = nn.Linear(4, 1), begin
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(100):
            (model(torch.randn(8, 4)).square().mean() * scale).backward()
            model.weight.grad /= scale
            model.bias.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
            scale *= factor

    assert [entry.begins for entry in seen(code, RunawayScale)] == begins


@pytest.mark.parametrize(("scale", "found"), [(2.0**24, True), (2.0**4, False)])
def test_overflowed_gradients_set_to_zero_are_reported(scale, found):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            (model(torch.randn(8, 4).half()).float().square().mean() * scale).backward()
            for parameter in model.parameters():
                parameter.grad.div_(scale).nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
            optimizer.zero_grad()

    told = [(entry.place.path, entry.step, entry.scale) for entry in seen(code, LostGradient)]
    assert told == [(__file__, 0, scale)] * found


@pytest.mark.parametrize(("scale", "found"), [(2.0**30, True), (2.0**4, False)])
def test_gradients_that_overflow_in_autocast_under_a_scale_by_hand_are_reported(scale, found):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            with torch.autocast("cpu", torch.float16):
                out = model(torch.randn(8, 4))
            (out.float().square().mean() * scale).backward()
            if all(p.grad.isfinite().all() for p in model.parameters()):
                optimizer.step()
            optimizer.zero_grad()

    entries = seen(code, LostGradient, precision="as-written")
    told = [(entry.place.path, entry.dtype, entry.scale) for entry in entries]
    assert told == [(__file__, "float32", scale)] * found


def test_divided_loss_does_not_count_as_scaled():
    def code():
        model, count = nn.Linear(4, 1), torch.full((70_000,), 1.0).half().sum(dtype=torch.float16)
        (model(torch.randn(8, 4)).square().sum() / count).backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()

    assert seen(code, RunawayScale) == []


def test_only_runs_as_written_are_watched():
    assert seen(averaging(0.999, torch.bfloat16, True), StateLoss, precision="float32") == []
    assert seen(averaging(0.999, torch.bfloat16, True), StateLoss, precision="as-written") != []


def test_own_casts_do_not_count_as_the_scripts():
    every = frozenset(range(5))
    spec = RunSpec(
        Job("script", "train.py", (), os.getcwd(), 5),
        "x",
        audited=every,
        shadowed=every,
        formats=("bfloat16", "float16"),
    )
    result = run(spec, train)
    assert result.trace.ops[0].local_error["bfloat16"] > 0
    assert not result.own_precision.casts
    assert not result.own_precision.low


def test_sparse_gradients_are_watched():
    def code():
        torch.manual_seed(0)
        model = nn.Embedding(50, 3, sparse=True)
        optimizer = torch.optim.SparseAdam(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randint(50, (8,))).square().mean().backward()
            if step == 2:
                model.weight.grad = model.weight.grad * float("inf")
            optimizer.step()

    (entry,) = seen(code, NonFiniteStep, steps=4)
    assert entry.step == 2


def test_weight_outside_of_modules_is_told_from_the_states_of_its_optimizer():
    """Adam's moments change so much more than the weight that pooled with them its losses would not show."""

    def code():
        log_variance = torch.full((1,), 2.0, dtype=torch.bfloat16, requires_grad=True)
        optimizer = torch.optim.Adam([log_variance], lr=1e-3)

        def before_step(model):
            optimizer.zero_grad()
            log_variance.float().exp().sum().backward()
            optimizer.step()

        train(before_step=before_step)

    lost = {entry.buffer: entry.lost for entry in seen(code, StateLoss)}
    assert lost.pop("") == 1
    assert lost.keys() == {"exp_avg", "exp_avg_sq"}
    assert max(lost.values()) < 0.1


def second_moment(beta, dtype=torch.bfloat16):
    """An optimizer's moment that grows from zero, so that hardly any of its changes is lost yet."""
    moments = {}

    def before_step(model):
        for parameter in model.parameters():
            moment = moments.setdefault(parameter, torch.zeros_like(parameter, dtype=dtype))
            moment.mul_(beta).add_(parameter.grad.square(), alpha=1 - beta)

    return lambda: train(before_step=before_step)


@pytest.mark.parametrize(
    ("beta", "dtype", "vain"),
    [
        (0.999, torch.bfloat16, True),
        (0.99, torch.bfloat16, False),
        (0.999, torch.float16, False),
        (0.9999, torch.float16, True),
        (0.9999, torch.float32, False),
    ],
)
def test_decay_that_rounds_to_no_change_is_reported(beta, dtype, vain):
    found = seen(second_moment(beta, dtype), VainDecay)
    assert [(entry.factor, entry.place.path) for entry in found] == ([(beta, __file__)] if vain else [])


def test_underflow_in_casts_is_counted_per_line():
    values = torch.tensor([1.0, 1e-3, 1e-9, 0.0])

    def code():
        def after_step(model):
            values.half(), values.bfloat16(), (values * 1e3).to(torch.float16)
            torch.zeros(4, dtype=torch.float16).copy_(values * 1e-7)

        train(after_step=after_step)

    cast, copied = seen(code, VanishedInCast)
    assert cast.lost == pytest.approx(1 / 6)  # two casts of three values, of which one is lost once
    assert copied.place.line == cast.place.line + 1
    assert copied.lost == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_underflow_in_casts_to_float8_is_counted(dtype):
    """Half of float8_e5m2's smallest value, 2^-17, is rounded to zero, and half of float8_e4m3's is 2^-10."""
    values = torch.tensor([1.0, 2.0**-9, 2.0**-11, 2.0**-18], dtype=dtype)

    def code():
        def after_step(model):
            values.to(torch.float8_e4m3fn)
            values.to(torch.float8_e5m2)

        train(after_step=after_step)

    assert [(each.dtype, each.lost) for each in seen(code, VanishedInCast)] == [
        ("float8_e4m3fn", 0.5),
        ("float8_e5m2", 0.25),
    ]


def test_coarse_casts_are_reported_per_line():
    def code():
        torch.manual_seed(1)
        metres = torch.tensor([4123.25, 8201.75]) + torch.randn(64, 2)

        def after_step(model):
            metres.to(torch.bfloat16)
            (metres - metres.mean(0)).to(torch.bfloat16), torch.full((8, 2), 8201.75).bfloat16()
            torch.stack([metres[:, 0], torch.randn(64)], 1).half()

        train(after_step=after_step)

    whole, centred, column = seen(code, BlurredInCast)
    assert whole.lost > 0.9
    assert centred.lost < 0.01
    assert (column.dtype, column.place.line) == ("float16", whole.place.line + 2)
    assert 0.25 < column.lost < whole.lost


def blend(average, new):
    average.mul_(0.99).add_(new, alpha=0.01)


def blend_and_copy(average, new):
    average.copy_(average + (new - average) / 100)


@pytest.mark.parametrize("update", [blend, blend_and_copy])
@pytest.mark.parametrize(("dtype", "found"), [(torch.bfloat16, True), (torch.float32, False)])
def test_average_updated_every_tenth_step(update, dtype, found):
    """In every tenth, as libraries have it; the fifth steps, in which states used to be followed, were none of them."""

    def code():
        torch.manual_seed(1)
        average, count = torch.randn(64).to(dtype), [0]

        def after_step(model):
            count[0] += 1
            if count[0] % 10 == 1:
                update(average, average.float() + 0.1 * torch.randn(64))

        train(after_step=after_step)

    entries = seen(code, StateLoss, steps=80)
    assert bool(entries) is found
    assert all(entry.lost > 0.2 for entry in entries)


@pytest.mark.parametrize(("growth", "told"), [(float("nan"), True), (1e-3, False)])
def test_nonfinite_weights_written_by_the_script_are_reported(growth, told):
    """As a climb to the worst neighbour does, of gradients that overflowed; what an optimizer writes is its own."""

    def before_step(model):
        with torch.no_grad():
            model[2].weight.add_(growth * model[2].weight.grad)

    entries = seen(lambda: train(before_step=before_step), NonFiniteWeight, steps=3)
    assert [(entry.fqn, entry.op, entry.step, entry.place.path) for entry in entries] == (
        [("2", "add", 0, __file__)] if told else []
    )


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


def test_own_generator_is_drawn_from_once():
    drawn = []

    def code():
        own = torch.Generator().manual_seed(0)
        train(after_step=lambda model: drawn.append(torch.randn(4, dtype=torch.float16, generator=own)))

    seen(code, OpLoss, steps=12)
    own = torch.Generator().manual_seed(0)
    expected = [torch.randn(4, dtype=torch.float16, generator=own) for _ in drawn]
    assert len(drawn) == 11
    assert all(map(torch.equal, drawn, expected))


def restored(model):
    """As from a checkpoint in half."""
    model.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()})


def rounded(model):
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16().float())


def halfway(model):
    """To a low copy of it, and half of the way: what is taken away is no rounding."""
    for parameter in model.parameters():
        parameter.data.copy_((parameter.data * 0.5).bfloat16())


def validated_in_half(model):
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    rounded(model)
    model.load_state_dict(kept)


@pytest.mark.parametrize("write", [restored, rounded])
@pytest.mark.parametrize(("lr", "least", "most"), [(1e-3, 0.5, 1.0), (1.0, 0.0, 0.05)])
def test_repeatedly_rounded_float32_weight_counts_as_low(write, lr, least, most):
    lost = [entry.lost for entry in seen(lambda: train(after_step=write, lr=lr), StateLoss) if entry.fqn == "0"]
    assert lost
    assert least <= lost[0] <= most


def test_overwritten_float32_weight_does_not_count_as_low():
    loaded = {}

    def once(model):
        if not loaded:
            loaded.update({name: value.bfloat16() for name, value in model.state_dict().items()})
            model.load_state_dict(loaded)

    assert seen(lambda: train(after_step=once, lr=1e-3), StateLoss) == []
    assert seen(lambda: train(after_step=halfway, lr=1e-3), StateLoss) == []
    assert seen(lambda: train(after_step=validated_in_half, lr=1e-3), StateLoss) == []


def clamped(parameters):
    for parameter in parameters:
        parameter.grad.clamp_(-1, 1)


def replaced(parameters):
    for parameter in parameters:
        parameter.grad = parameter.grad.clamp(-1, 1)


def by_data(parameters):
    for parameter in parameters:
        parameter.grad.data.mul_(0.5)


def all_at_once(parameters):
    torch._foreach_mul_([parameter.grad for parameter in parameters], 0.5)


def into(parameters):
    for parameter in parameters:
        torch.clamp(parameter.grad, -1, 1, out=parameter.grad)


def norm_taken(parameters):
    for parameter in parameters:
        torch.mul(parameter.grad, 2, out=torch.empty_like(parameter.grad)).norm()


@pytest.mark.parametrize("change", [clamped, replaced, by_data, all_at_once, into, norm_taken, list])
def test_gradient_changes_of_the_script_have_their_line(change):
    """Neither the scaler's unscaling, nor the step, nor setting them to zero is one."""

    def code():
        model, scaler = nn.Linear(4, 1), torch.amp.GradScaler("cpu", init_scale=16.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(9):
            optimizer.zero_grad(set_to_none=False)
            scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
            change(list(model.parameters()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()

    spec = RunSpec(Job("script", "train.py", (), os.getcwd(), 4), "x", audited=frozenset({0}), precision="as-written")
    place = run(spec, code).own_precision.changes_gradients
    if change in (norm_taken, list):
        assert place is None
    else:
        first = change.__code__.co_firstlineno
        assert place.path == __file__
        assert first < place.line <= first + 2
