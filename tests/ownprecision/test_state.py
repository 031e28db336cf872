"""What a state in low precision loses of its changes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import seen, train

from precaudit.instrument.names import ModuleNames
from precaudit.ownprecision.records import StateLoss, VainDecay
from precaudit.ownprecision.state import States


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


class Compensated(torch.optim.Optimizer):
    """SGD that keeps what each update loses for the next one (Kahan's summation)."""

    def update(self, p, left, change):
        change = left + change
        after = p + change
        left.copy_(change - (after - p))
        p.copy_(after)

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            left = self.state[p].setdefault("left", torch.zeros_like(p))
            self.update(p, left, -self.param_groups[0]["lr"] * p.grad)


class CompensatedInPlace(Compensated):
    def update(self, p, left, change):
        before = p.clone()
        left.add_(change)
        p.add_(left)
        left.add_(before.sub_(p))


class Negated(Compensated):
    def update(self, p, left, change):
        change = change - left
        after = p + change
        left.copy_((after - p) - change)
        p.copy_(after)


class Uncompensated(Compensated):
    """The same but for the remainder, which is made and never used."""

    def update(self, p, left, change):
        after = p + change
        left.copy_((p - after) * 0.5)
        p.copy_(after)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Compensated, False),
        (CompensatedInPlace, False),
        (Negated, False),
        (Uncompensated, True),
        (torch.optim.SGD, True),
    ],
)
def test_what_a_compensated_sum_keeps_does_not_stand_still(kind, told):
    """Without rounding it would be zero; the weights that it compensates lose next to nothing."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(32, 32).bfloat16()
        optimizer = kind(model.parameters(), lr=1e-3)
        for _ in range(100):
            x = torch.randn(64, 32).bfloat16()
            optimizer.zero_grad()
            (model(x) - x.roll(1, 1)).float().square().mean().backward()
            optimizer.step()

    entries = seen(code, StateLoss)
    assert any(entry.lost > 0.5 for entry in entries) is told
