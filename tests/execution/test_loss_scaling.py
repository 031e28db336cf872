"""Transparent loss scaling: exact on ordinary training loops, and skips exactly what torch's scaler would."""

import gc
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from precaudit.execution.loss_scaling import LossScaler, leaves_of
from precaudit.instrument.events import TrainingEvents
from precaudit.model import LossScale
from precaudit.ownprecision.baseline import Baseline

STATIC = LossScale("static", 2.0**13)


@contextmanager
def scaled(settings, has_optimizer=True):
    """A loss scaler that listens until the block ends."""
    events, scaler = TrainingEvents(has_optimizer), LossScaler(settings)
    events.listeners.append(scaler)
    with events.installed():
        yield scaler
    scaler.remove()


def net(sparse=False):
    torch.manual_seed(0)
    if sparse:
        return nn.Sequential(nn.Embedding(20, 4, sparse=True), nn.Flatten(), nn.Linear(8, 1))
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def data(steps):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)) for _ in range(steps)]


def mse(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


# ---------------------------------------------------------------- exact


def plain(model):
    optimizer = Adam(model.parameters(), lr=1e-2)
    for batch in data(5):
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()


def lbfgs(model):
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    for batch in data(2):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = mse(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)


def accumulation_and_clipping(model):
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i, batch in enumerate(data(6)):
        (mse(model, batch) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


def gradient_penalty(model):
    optimizer = Adam(model.parameters(), lr=1e-2)
    for x, y in data(4):
        x = x.requires_grad_()
        optimizer.zero_grad()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (nn.functional.mse_loss(out, y) + slope.square().mean()).backward()
        optimizer.step()


def backward_twice(model):
    """The first backward's own gradients are differentiated."""
    optimizer = SGD(model.parameters(), lr=0.01)
    for batch in data(3):
        optimizer.zero_grad()
        mse(model, batch).backward(create_graph=True)
        sum(p.grad.square().sum() for p in model.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()


def given_gradients(model):
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data(3):
        optimizer.zero_grad()
        out = model(x)
        out.backward(gradient=out.detach() - y, retain_graph=True)
        torch.autograd.backward([out.mean(), out.square().sum()], [None, torch.tensor(0.5)])
        optimizer.step()


def two_optimizers(model):
    first, second = SGD(model[0].parameters(), lr=0.1), Adam(model[2].parameters(), lr=0.01)
    for batch in data(4):
        first.zero_grad()
        second.zero_grad()
        mse(model, batch).backward()
        first.step()
        mse(model, batch).backward()
        second.step()


def clipping_hooks(model):
    """Hooks of the script's own, registered before and during training."""
    seen = []
    for p in model.parameters():
        p.register_hook(lambda g: g.clamp(-0.01, 0.01))
    optimizer = SGD(model.parameters(), lr=0.5)
    for batch in data(3):
        handle = model[0].weight.register_hook(lambda g: seen.append(g.clone()))
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()
        handle.remove()
    model.register_buffer("seen", torch.stack(seen))


def only_some_inputs(model):
    for batch in data(3):
        loss = mse(model, batch)
        loss.backward(inputs=[model[2].weight])
        with torch.no_grad():
            model[2].weight -= 0.1 * model[2].weight.grad
        model[2].weight.grad = None


def steps_in_backward(model):
    """The optimizer runs in a hook after each gradient is accumulated."""
    optimizers = {p: SGD([p], lr=0.1) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for batch in data(3):
        mse(model, batch).backward()


def reentrant_checkpointing(model):
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data(3):
        optimizer.zero_grad()
        out = torch.utils.checkpoint.checkpoint(model[1:], model[0](x), use_reentrant=True)
        nn.functional.mse_loss(out, y).backward()
        optimizer.step()


def gradients_asked_for(model):
    """By `torch.autograd.grad`, with a hook of the script's own, and differentiated once more."""
    model[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
    optimizer, parameters = SGD(model.parameters(), lr=0.1), list(model.parameters())
    for batch in data(3):
        gradients = torch.autograd.grad(mse(model, batch), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)
        for p, g in zip(parameters, second, strict=True):
            p.grad = g
        optimizer.step()


def no_optimizer(model):
    for batch in data(3):
        mse(model, batch).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None


class Recomputed(torch.autograd.Function):
    """As adjoint solvers do it: the model runs anew in the backward pass, and its gradients are asked for there."""

    @staticmethod
    def forward(ctx, model, x, *parameters):
        ctx.model, ctx.x = model, x
        return model(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            result = ctx.model(ctx.x)
            return None, None, *torch.autograd.grad(result, list(ctx.model.parameters()), gradient)


def gradients_inside_backward(model):
    optimizer = Adam(model.parameters(), lr=1e-2)
    for x, y in data(5):
        optimizer.zero_grad()
        result = Recomputed.apply(model, x, *model.parameters())
        nn.functional.mse_loss(result, y).backward()
        optimizer.step()


LOOPS = [
    plain,
    lbfgs,
    accumulation_and_clipping,
    gradient_penalty,
    backward_twice,
    given_gradients,
    two_optimizers,
    clipping_hooks,
    only_some_inputs,
    steps_in_backward,
    reentrant_checkpointing,
    gradients_inside_backward,
    gradients_asked_for,
    no_optimizer,
]


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_training_is_bit_identical_under_a_power_of_two(loop):
    reference, model = net(), net()
    loop(reference)
    with scaled(STATIC, has_optimizer=False) as scaler:
        loop(model)
    for name, value in reference.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert not torch.equal(reference[2].weight, net()[2].weight)
    assert scaler.skipped == []
    assert scaler.scales
    assert set(scaler.scales) == {2.0**13}


def test_sparse_gradients():
    def loop(model):
        optimizer = SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            model(torch.tensor([[step, 3], [3, 7]])).square().sum().backward()
            assert model[0].weight.grad.is_sparse
            optimizer.step()

    reference, model = net(sparse=True), net(sparse=True)
    loop(reference)
    with scaled(STATIC):
        loop(model)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), model.parameters(), strict=True))


def test_a_function_without_a_gradient_for_a_leaf():
    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2, None

    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with scaled(LossScale("static", 2.0**8)):
        First.apply(x, y).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))
    assert y.grad is None


def test_backward_pass_from_a_leaf():
    with scaled(STATIC):
        x = torch.tensor(3.0, requires_grad=True)
        x.backward()
    assert x.grad == 1.0


def scaled_by_the_script(loss):
    return torch.amp.GradScaler("cpu").scale(loss)


@pytest.mark.parametrize("scale", [scaled_by_the_script, lambda loss: loss])
def test_gradients_of_an_input_are_scaled_where_the_script_has_its_own_scaler_do_it(scale):
    x = torch.ones(3, requires_grad=True)
    with Baseline().neutralized(), scaled(STATIC):
        (gradient,) = torch.autograd.grad(scale(x.half().float().sum() * 2.0**-27), x)
    assert torch.equal(gradient, torch.full((3,), 2.0**-27 if scale is scaled_by_the_script else 0.0))


def test_a_penalty_on_gradients_that_the_script_scales_is_bit_identical():
    def loop(model):
        optimizer = Adam(model.parameters(), lr=1e-2)
        for x, y in data(3):
            optimizer.zero_grad()
            out = model(x.requires_grad_())
            (slope,) = torch.autograd.grad(scaled_by_the_script(out.sum()), x, create_graph=True)
            (nn.functional.mse_loss(out, y) + slope.square().mean()).backward()
            optimizer.step()

    reference, model = net(), net()
    with Baseline().neutralized():
        loop(reference)
        with scaled(STATIC) as scaler:
            loop(model)
    assert same(model, snapshot(reference))
    assert scaler.skipped == []


def test_gradients_of_a_loss_are_scaled_where_they_are_asked_for_and_those_of_an_input_are_not():
    model, seen = net(), []
    x = data(1)[0][0].requires_grad_()
    with scaled(LossScale("dynamic", 2.0**16, 2000)) as scaler:
        hidden = model[0](x)
        hidden.register_hook(lambda g: seen.append(float(g.abs().max())))
        loss = model[2](model[1](hidden)).sum()
        torch.autograd.grad(loss, x, retain_graph=True)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert seen[1] == 2.0**16 * seen[0]
        before, optimizer = snapshot(model), SGD(model.parameters(), lr=0.1)
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()
        assert not same(model, before)
        (model[0].weight.grad,) = torch.autograd.grad(poison(model), model[0].weight)
        before = snapshot(model)
        optimizer.step()
        assert same(model, before)
        torch.autograd.grad(poison(model), model[0].weight)  # looked at, and left alone
        optimizer.zero_grad()
        mse(model, data(1)[0]).backward()
        optimizer.step()
    assert scaler.skipped == [1]


def test_gradients_are_scaled_inside_the_backward_pass():
    """What float16 would flush without the scale survives with it."""
    x = torch.tensor([2.0**-26], requires_grad=True)
    scale = torch.tensor([1.0], requires_grad=True)
    seen = []

    def loss():
        middle = (scale * 1.0).clone()
        middle.register_hook(lambda g: seen.append(g.half().item()))
        return (middle * x).sum()

    loss().backward()
    with scaled(LossScale("static", 2.0**16)):
        loss().backward()
    assert seen == [0.0, 2.0**-10]


# ---------------------------------------------------------------- skips


def poison(model, index=0):
    """A loss whose gradient for one layer is infinite."""
    return (model[index].weight.sum() * float("inf")) + sum(p.sum() for p in model.parameters())


def snapshot(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, values):
    return all(torch.equal(p, v) for p, v in zip(module.parameters(), values, strict=True))


def test_a_gradient_that_is_not_finite_skips_the_whole_step_of_its_optimizer():
    model = net()
    optimizer = Adam(model.parameters(), lr=0.1)
    with scaled(LossScale("dynamic", 2.0**16, 2000)) as scaler:
        mse(model, data(1)[0]).backward()
        optimizer.step()
        before, state = snapshot(model), optimizer.state[model[0].weight]["step"].item()
        optimizer.zero_grad()
        poison(model).backward()
        optimizer.step()
        assert same(model, before)
        assert optimizer.state[model[0].weight]["step"].item() == state
        assert model[0].weight.grad.isinf().all()
        optimizer.zero_grad()
        mse(model, data(1)[0]).backward()
        optimizer.step()
    assert not same(model, before)
    assert scaler.skipped == [1]
    assert scaler.scales == [2.0**16, 2.0**15, 2.0**15]


def test_a_gradient_of_a_closure_that_is_not_finite_skips_the_step():
    model = net()
    optimizer = Adam(model.parameters(), lr=0.1)
    before = snapshot(model)
    with scaled(LossScale("dynamic", 2.0**16, 2000)) as scaler:
        for loss in (poison, lambda model: mse(model, data(1)[0])):
            assert same(model, before)

            def closure(loss=loss):
                optimizer.zero_grad()
                loss(model).backward()

            optimizer.step(closure)
    assert not same(model, before)
    assert all(p.isfinite().all() for p in model.parameters())
    assert scaler.skipped == [0]


def test_a_scale_that_every_step_halves_stays_above_zero():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with scaled(LossScale("dynamic", 2.0**-22, 2000)) as scaler:
        for _ in range(4):
            poison(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scaler.scales == [2.0**-23, 2.0**-24, 2.0**-24, 2.0**-24]


def test_only_the_optimizer_that_holds_the_parameter_skips():
    model = net()
    before = snapshot(model[0]), snapshot(model[2])
    with scaled(LossScale("dynamic", 4.0, 2000)) as scaler:
        first, second = SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
        poison(model, index=2).backward()
        first.step()
        second.step()
    assert not same(model[0], before[0])
    assert same(model[2], before[1])
    assert scaler.skipped == [0]
    assert scaler.scales == [2.0]


def test_clipping_doesn_t_hide_an_infinite_gradient():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    with scaled(STATIC) as scaler:
        poison(model).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        assert model[0].weight.grad.isfinite().all()
        optimizer.step()
    assert same(model, before)
    assert scaler.skipped == [0]


def test_one_nonfinite_micro_batch_skips_the_accumulated_step():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    with scaled(STATIC) as scaler:
        poison(model).backward()
        mse(model, data(1)[0]).backward()
        optimizer.step()
    assert same(model, before)
    assert scaler.skipped == [0]


def test_dropped_nonfinite_gradients_skip_no_step():
    """A generator's backward pass goes through the critic, whose gradients are dropped before its own step."""
    model = net()
    optimizer = SGD(model[2].parameters(), lr=0.1)
    before = snapshot(model[2])
    with scaled(STATIC) as scaler:
        poison(model, index=2).backward()
        optimizer.zero_grad()
        mse(model, data(1)[0]).backward()
        optimizer.step()
    assert not same(model[2], before)
    assert scaler.skipped == []


def test_nonfinite_sparse_gradient_skips_the_step():
    model = net(sparse=True)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    with scaled(STATIC) as scaler:
        (model(torch.tensor([[1, 2]])).sum() * float("inf")).backward()
        optimizer.step()
    assert same(model, before)
    assert scaler.skipped == [0]


def test_a_step_inside_the_backward_pass_is_skipped_too():
    weight = torch.ones(3, requires_grad=True)
    optimizer = SGD([weight], lr=0.1)
    weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    with scaled(STATIC) as scaler:
        (weight.sum() * float("inf")).backward()
    assert torch.equal(weight, torch.ones(3))
    assert scaler.skipped == [0]


def test_nonfinite_gradients_become_zero_without_an_optimizer():
    weight = torch.ones(3, requires_grad=True)
    with scaled(STATIC, has_optimizer=False) as scaler:
        (weight.sum() * float("inf")).backward()
        assert torch.equal(weight.grad, torch.zeros(3))
        weight.grad = None
        weight.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))
    assert scaler.skipped == [0]


# ---------------------------------------------------------------- the scale moves


def test_the_scale_doubles_after_an_interval_of_good_steps_and_halves_at_a_skip():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.0)
    with scaled(LossScale("dynamic", 8.0, 3)) as scaler:
        for bad in (0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0):
            optimizer.zero_grad()
            (poison(model) if bad else mse(model, data(1)[0])).backward()
            optimizer.step()
    assert scaler.scales == [8, 8, 16, 16, 8, 8, 8, 4, 4, 4, 8, 8]
    assert scaler.skipped == [4, 7]


def test_no_second_set_of_gradients_is_kept():
    # a size that no other test has, for theirs may be alive
    model = nn.Sequential(*(nn.Linear(61, 61, bias=False) for _ in range(8)))
    alive = []

    def count(_):
        gradients = [each.grad for each in model.parameters()]
        found = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter)]
        alive.append(len({each.untyped_storage().data_ptr() for each in found if each.shape == (61, 61)}))
        assert len(gradients) == 8

    model[0].weight.register_post_accumulate_grad_hook(count)
    with scaled(STATIC):
        model(torch.randn(4, 61)).sum().backward()
    assert alive[0] <= 2 * 8 + 1, "weights, their gradients, and one on its way"


def test_a_static_scale_stays():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.0)
    with scaled(LossScale("static", 8.0, 1)) as scaler:
        for bad in (0, 0, 1, 0):
            optimizer.zero_grad()
            (poison(model) if bad else mse(model, data(1)[0])).backward()
            optimizer.step()
    assert scaler.scales == [8] * 4


def test_what_settings_do_not_tell_is_as_torch_has_it():
    scaler, torchs = LossScaler(LossScale("dynamic")), torch.amp.GradScaler("cpu")
    assert scaler.scale == torchs.get_scale()
    for _ in range(torchs.get_growth_interval()):
        scaler.step_complete(None)
    assert scaler.scale == torchs.get_scale() * torchs.get_growth_factor()


def test_it_follows_torch_s_own_scaler():
    """Overflows of float16 at the scale in force, step by step as `torch.amp.GradScaler` sees them."""
    peaks = [1e2, 1e3, 3e4, 5.0, 5.0, 5.0, 1e5, 2.0, 2.0, 2.0, 2.0]
    ours = torch.ones(1, requires_grad=True)
    optimizer = SGD([ours], lr=0.0)
    with scaled(LossScale("dynamic", 64.0, 2)) as scaler:
        for peak in peaks:
            optimizer.zero_grad()
            (ours.half() * 1.0).float().mul(peak).sum().backward()
            optimizer.step()
    torchs = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    weight = torch.ones(1, requires_grad=True)
    optimizer = SGD([weight], lr=0.0)
    scales = []
    for peak in peaks:
        optimizer.zero_grad()
        torchs.scale((weight.half() * 1.0).float().mul(peak).sum()).backward()
        torchs.step(optimizer)
        torchs.update()
        scales.append(torchs.get_scale())
    assert scaler.scales == scales
    assert len(scaler.skipped) > 1


# ---------------------------------------------------------------- nothing left


def test_no_hook_stays_behind():
    model = net()
    with scaled(STATIC):
        plain(model)
        assert all(not p._backward_hooks for p in model.parameters())


def test_a_backward_pass_that_raised_leaves_no_hook_for_the_next():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("broken")

    weight = torch.ones(3, requires_grad=True)
    with scaled(STATIC) as scaler:
        with pytest.raises(ValueError, match="broken"):
            Broken.apply(weight * 2).sum().backward()
        (weight * 2).sum().backward()
        assert torch.equal(weight.grad, torch.full((3,), 2.0))
    scaler.remove()
    assert not weight._backward_hooks


def test_leaves_are_found_once_and_frozen_ones_not_at_all():
    model = net()
    model[0].weight.requires_grad_(False)
    x = torch.ones(2, 4, requires_grad=True)
    out = model(x)
    found = leaves_of([out.sum(), out.mean(), torch.ones(1)])
    assert {id(leaf) for leaf in found} == {id(t) for t in (x, model[0].bias, model[2].weight, model[2].bias)}
    assert len(found) == 4


def test_attributes_of_custom_functions_do_not_count_as_leaves():
    class Named(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = "mine"
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    x = torch.ones(2, requires_grad=True)
    assert [leaf is x for leaf in leaves_of([Named.apply(x).sum()])] == [True]


def test_without_an_optimizer_no_parameter_of_a_skipped_step_changes():
    """One gradient overflows; the other, which didn't, would move its parameter half a step on."""
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    with scaled(LossScale("dynamic", 2.0**13, 100), has_optimizer=False) as scaler:
        for factor in (1e38, 1.0):
            (first.sum() * factor + 2 * second.sum()).backward()
            with torch.no_grad():
                for parameter in (first, second):
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            if factor > 1:
                assert torch.equal(first, torch.ones(2))
                assert torch.equal(second, torch.ones(2))
    assert scaler.skipped == [0]
    assert torch.equal(second, torch.full((2,), 0.8))
