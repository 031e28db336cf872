"""Functions with a backward pass of their own, under a plan and outside of what autocast reaches."""

import os

import pytest
import torch
from torch import nn

from precaudit.model import Plan
from precaudit.planning.rules import bans
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run

STEPS = 3


class Product(torch.autograd.Function):
    """As its author tested it, in float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x.mm(weight.t())

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient.mm(weight), gradient.t().mm(x)


class Decorated(Product):
    """As torch's notes on autocast have it."""

    forward = staticmethod(torch.amp.custom_fwd(Product.forward, device_type="cuda"))
    backward = staticmethod(torch.amp.custom_bwd(Product.backward, device_type="cuda"))


class Gradients(Decorated):
    """What its backward pass is given and makes."""

    seen: list[torch.dtype] = []

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, gradient):
        made = Product.backward(ctx, gradient)
        Gradients.seen += [gradient.dtype, made[0].dtype]
        return made


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.function.apply(x, self.weight)


def trained(function, default="bfloat16", modules=None):
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), Layer(function), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    plan = Plan(default=default, modules=modules or {})
    job = Job("script", "train.py", (), os.getcwd(), STEPS + 1)
    return run(RunSpec(job, "x", precision="plan", plan=plan, execution="emulated"), code)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_decorated_backward_pass_runs_in_the_forwards_precision():
    Gradients.seen.clear()
    result = trained(Gradients)
    assert result.error is None
    assert len(result.losses) == STEPS
    assert set(Gradients.seen) == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_decorated_backward_pass_in_a_float32_module_is_float32():
    Gradients.seen.clear()
    assert trained(Gradients, modules={"0": "float32", "1": "float32", "2": "bfloat16"}).error is None
    assert set(Gradients.seen) == {torch.float32}


def test_a_backward_pass_that_raises_outside_of_autocast_is_traced_to_its_module():
    result = trained(Product)
    assert result.status == "failed"
    assert (result.error.raised_in.partition(":")[2], result.error.backward_of) == ("1", "Product")
    assert torch.overrides._get_current_function_mode_stack() == []


def test_in_a_float32_module_it_keeps_float32_operands():
    assert trained(Product, modules={"1": "float32"}).error is None


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_the_mode_that_a_raising_backward_pass_ran_in_is_gone():
    class Broken(Decorated):
        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, gradient):
            raise ZeroDivisionError

    result = trained(Broken)
    assert (result.error.type, result.error.backward_of) == ("ZeroDivisionError", "Broken")
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_forward_that_raises_has_no_function_of_its_own():
    class Broken(Product):
        @staticmethod
        def forward(ctx, x, weight):
            raise ZeroDivisionError

    result = trained(Broken)
    assert (result.error.raised_in.partition(":")[2], result.error.backward_of) == ("1", None)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_function_whose_apply_is_of_c_as_since_torch_2_14_is_still_ones_own(monkeypatch):
    monkeypatch.setattr(torch.autograd.Function, "apply", torch._C._FunctionBase.__dict__["apply"])
    assert trained(Decorated).error is None


def test_autograd_functions_are_restored():
    before = torch.autograd.Function.__dict__["apply"]
    trained(Product)
    assert torch.autograd.Function.__dict__["apply"] is before


# ---------------------------------------------------------------- what the audit sees of it


class Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x * x).mean(1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x / x.shape[1]


class WideEnergy(Energy):
    forward = staticmethod(torch.amp.custom_fwd(Energy.forward, device_type="cuda", cast_inputs=torch.float32))
    backward = staticmethod(torch.amp.custom_bwd(Energy.backward, device_type="cuda"))


class Scale(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return x / (1 + self.function.apply(x)).sqrt()


def energies(function, **spec):
    """A run with values in the thousands, whose squares float16 can't hold."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), Scale(function), nn.Linear(8, 1))
        nn.init.constant_(model[0].weight, 1000.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), STEPS + 1), "x", **spec), code)
    assert result.error is None
    return result


@pytest.mark.parametrize(("function", "told"), [(Energy, ["mul", "mean"]), (WideEnergy, [])])
def test_operations_inside_a_function_are_audited(function, told):
    trace = energies(function, audited=frozenset(range(STEPS))).trace
    found = bans(trace, ("float16",))
    assert [ban.op for ban in found if ban.fqn == "1" and ban.rule == "PA101" and ban.op in ("mul", "mean")] == told


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_function_that_asks_for_float32_gets_it_under_a_plan():
    plan = Plan(default="float16")
    wide, narrow = (energies(each, precision="plan", plan=plan, execution="emulated") for each in (WideEnergy, Energy))
    exact = energies(WideEnergy)
    assert wide.losses == pytest.approx(exact.losses, rel=0.02)
    assert narrow.losses != pytest.approx(exact.losses, rel=0.02)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_function_that_asks_for_float32_gets_it_in_a_probe(tmp_path):
    probing = {"probe_dir": str(tmp_path), "execution": "emulated"}
    energies(WideEnergy, probe_save=frozenset({1, 2}), **probing)
    replay = energies(WideEnergy, probe_compare={2: ("a", Plan(default="float16"))}, **probing)
    assert all(0 < found.delta < 0.01 * found.gradient for found in replay.differences)
