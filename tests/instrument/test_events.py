"""Training events of scripts as people write them."""

import pytest
import torch
from instrumented import recorded
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import TorchFunctionMode

from precaudit.instrument.events import TrainingListener, in_backward

X = torch.ones(4, 2)


def model_and(kind=SGD, **options):
    model = nn.Linear(2, 1)
    return model, kind(model.parameters(), lr=0.1, **options)


def test_a_training_step():
    with recorded() as (recorder, _, events):
        model, optimizer = model_and()
        assert events.has_optimizer
        model(X).sum().backward()
        optimizer.step()
    assert recorder.heard == ["backward", "ended", "step SGD", "stepped"]


def test_every_way_to_call_backward():
    with recorded(has_optimizer=True) as (recorder, _, _):
        weight = torch.ones(3, requires_grad=True)
        weight.sum().backward()
        (weight * 2).backward(torch.ones(3))
        torch.autograd.backward([weight.sum(), weight.prod()])
        torch.autograd.backward((weight * 2,), grad_tensors=(torch.ones(3),))
    assert recorder.heard == ["backward", "ended"] * 4
    assert torch.equal(weight.grad, torch.full((3,), 1.0 + 2 + 2 + 2))


def test_listeners_may_replace_gradients():
    class Ten:
        def backward_starts(self, roots, gradients):
            assert gradients == [None]
            return [torch.full_like(roots[0], 10.0)]

        def backward_ended(self, roots):
            pass

    with recorded(has_optimizer=True) as (_, _, events):
        events.listeners[:] = [Ten()]
        weight = torch.ones(3, requires_grad=True)
        weight.sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 10.0))


def test_wrong_arguments_raise_the_error_of_torch():
    with recorded(), pytest.raises(TypeError, match=r"^backward\(\) got an unexpected keyword argument 'wrong'"):
        torch.autograd.backward(wrong=1)


def test_nested_backward_is_one_backward():
    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.detach() ** 2

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                again = x.detach().requires_grad_()
                assert in_backward()
                torch.autograd.backward(again**2, gradient)
            return again.grad

    with recorded(has_optimizer=True) as (recorder, _, _):
        x = torch.full((2,), 3.0, requires_grad=True)
        assert not in_backward()
        Inner.apply(x).sum().backward()
        assert not in_backward()
    assert recorder.heard == ["backward", "nested", "ended"]
    assert torch.equal(x.grad, torch.full((2,), 6.0))


def test_gradients_taken_by_themselves():
    with recorded(has_optimizer=True) as (recorder, _, _):
        x = torch.ones(2, requires_grad=True)
        torch.autograd.grad((x**2).sum(), x)
        torch.func.grad(lambda t: (t**2).sum())(torch.ones(2))
        (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        g.sum().backward()
    assert recorder.heard == ["grad", "grad", "grad", "backward", "ended"]


def test_one_shot_iterators_reach_torch_complete():
    with recorded(has_optimizer=True) as (recorder, _, _):
        model = nn.Linear(2, 1)
        loss = model(X).sum()
        taken = torch.autograd.grad(loss, model.parameters(), retain_graph=True)
        named = torch.autograd.grad(loss, dict(model.named_parameters()), retain_graph=True)
        torch.autograd.backward(iter([loss]), iter([torch.tensor(2.0)]))
    assert [t.shape for t in taken] == [t.shape for t in model.parameters()]
    assert list(named) == ["weight", "bias"] if isinstance(named, dict) else len(named) == 2
    assert torch.equal(model.bias.grad, torch.tensor([8.0]))
    assert recorder.heard == ["grad", "grad", "backward", "ended"]


def test_closures_run_inside_the_step():
    inside = []
    with recorded() as (recorder, _, events):
        model, optimizer = model_and(torch.optim.LBFGS, max_iter=2)

        def closure():
            inside.append(events.in_step)
            optimizer.zero_grad()
            loss = model(X).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert not events.in_step
    assert all(inside)
    assert recorder.heard[0] == "step LBFGS"
    assert recorder.heard[-1] == "stepped"
    assert recorder.heard.count("backward") == len(inside)


@pytest.mark.parametrize("named", [False, True])
def test_gradients_are_ready_once_a_closure_was_evaluated(named):
    heard = []

    class Listener(TrainingListener):
        def step_starts(self, optimizer):
            heard.append(("starts", model.weight.grad))

        def gradients_ready(self, optimizer):
            heard.append(("ready", model.weight.grad.sum().item()))

    with recorded() as (_, _, events):
        events.listeners[:] = [Listener()]
        model, optimizer = model_and(torch.optim.LBFGS, max_iter=3)

        def closure():
            heard.append("evaluated")
            optimizer.zero_grad()
            loss = model(X).sum()
            loss.backward()
            return loss

        optimizer.step(closure=closure) if named else optimizer.step(closure)
    assert heard[:3] == [("starts", None), "evaluated", ("ready", 8.0)]
    assert set(heard[3:]) == {"evaluated"}


class Lookahead(Optimizer):
    """Steps another optimizer inside its own step."""

    def __init__(self, base):
        self.base = base
        super().__init__(base.param_groups, {})

    def step(self, closure=None):
        self.base.step()
        self.base.step()


class Plain:
    """Not a torch optimizer at all."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        with torch.no_grad():
            for p in self.parameters:
                p -= 0.1 * p.grad


class OwnSubclass(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


def test_an_optimizer_that_wraps_another_is_one():
    with recorded() as (recorder, _, _):
        model, base = model_and()
        outer = Lookahead(base)
        model(X).sum().backward()
        outer.step()
    assert recorder.heard == ["backward", "ended", "step Lookahead", "stepped"]


def test_optimizer_subclass_of_the_script():
    with recorded() as (recorder, _, _):
        model, optimizer = model_and(OwnSubclass)
        model(X).sum().backward()
        optimizer.step()
    assert recorder.heard[2:] == ["step OwnSubclass", "stepped"]


def test_without_a_torch_optimizer_every_backward_is_a_step():
    with recorded() as (recorder, _, events):
        model = nn.Linear(2, 1)
        optimizer = Plain(model.parameters())
        for _ in range(2):
            model(X).sum().backward()
            optimizer.step()
        assert not events.has_optimizer
    assert recorder.heard == ["backward", "ended", "step NoneType", "stepped"] * 2


def test_without_a_torch_optimizer_gradients_of_parameters_are_steps_where_nothing_calls_backward():
    with recorded() as (recorder, _, _):
        model = nn.Linear(2, 1)
        torch.autograd.grad(model(X).sum(), list(model.parameters()))
        torch.autograd.grad(model(X).sum(), model.weight, create_graph=True)
        torch.autograd.grad(X.requires_grad_().sum(), X)
    assert recorder.heard == ["grad", "step NoneType", "stepped", "grad", "grad"]


class Passing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_function_modes_do_not_multiply_a_call():
    """torch calls `grad` and `backward` once more for each, by their names."""
    with recorded(has_optimizer=True) as (recorder, _, _), Passing(), Passing():
        weight = torch.ones(3, requires_grad=True)
        torch.autograd.grad(weight.sum(), weight)
        torch.autograd.backward([weight.sum()])
    assert recorder.heard == ["grad", "backward", "ended"]


def test_earlier_optimizer_is_known_from_its_first_step():
    model, optimizer = model_and()
    with recorded() as (recorder, _, events):
        for _ in range(2):
            model(X).sum().backward()
            optimizer.step()
        assert events.has_optimizer
    assert recorder.heard.count("stepped") == 3


def test_step_after_a_raising_step_is_counted():
    with recorded() as (recorder, _, events):
        model, optimizer = model_and()
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        model(X).sum().backward()
        optimizer.step()
        assert not events.in_step
    assert recorder.heard == ["step SGD", "backward", "ended", "step SGD", "stepped"]


def test_nothing_stays_installed_also_when_the_script_raises():
    backward, grad, init = torch.autograd.backward, torch.autograd.grad, Optimizer.__init__
    hooks = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
    before = [dict(each) for each in hooks]
    with pytest.raises(ZeroDivisionError), recorded():
        raise ZeroDivisionError
    assert (torch.autograd.backward, torch.autograd.grad, Optimizer.__init__) == (backward, grad, init)
    assert [dict(each) for each in hooks] == before


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_optimizers_work_as_before(kind):
    torch.manual_seed(0)
    reference = nn.Linear(2, 1)
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    for net, watched in ((reference, False), (model, True)):
        optimizer = kind(net.parameters(), lr=0.1)
        if watched:
            with recorded():
                net(X).sum().backward()
                optimizer.step()
        else:
            net(X).sum().backward()
            optimizer.step()
    assert torch.equal(model.weight, reference.weight)


def steps_of(iterate, count=4):
    """How many steps `count` iterations make."""
    with recorded(has_optimizer=True) as (recorder, _, events):
        for number in range(count):
            iterate(number)
        events.complete()
    return recorder.steps


def two_models():
    (one, first), (two, second) = model_and(), model_and(Adam)
    return one, first, two, second


def test_optimizers_that_step_on_the_same_gradients_make_one_step():
    one, first, two, second = two_models()

    def iterate(number):
        (one(X) + two(X)).sum().backward()
        first.step()
        second.step()

    assert steps_of(iterate) == 4


def test_optimizers_that_alternate_make_a_step_each():
    one, first, two, second = two_models()

    def iterate(number):
        for model, optimizer in ((one, first), (two, second)):
            model(X).sum().backward()
            optimizer.step()

    assert steps_of(iterate) == 8


def test_occasional_optimizer_makes_no_extra_step():
    one, first, two, second = two_models()

    def iterate(number):
        (one(X) + two(X)).sum().backward()
        first.step()
        if number % 2 == 0:
            second.step()

    assert steps_of(iterate, 5) == 5


def test_optimizers_in_the_backward_pass_make_one_step():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizers = {p: SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())

    assert steps_of(lambda number: model(X).sum().backward()) == 4


def test_steps_without_new_gradients_and_steps_with_closures_count_each():
    one, first, two, second = two_models()

    def evaluate(model):
        model(X).sum().backward()

    one(X).sum().backward()
    assert steps_of(lambda number: first.step()) == 4
    assert steps_of(lambda number: [first.step(lambda: evaluate(one)), second.step(lambda: evaluate(two))]) == 8


def test_step_with_a_closure_is_a_separate_step():
    one, first, two, second = two_models()

    def evaluate():
        one(X).sum().backward()

    def iterate(number):
        first.step(evaluate)
        two(X).sum().backward()
        second.step()

    assert steps_of(iterate) == 8
