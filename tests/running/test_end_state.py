"""How far buffers and parameters move, from their values before the first forward."""

import math
import weakref
from unittest.mock import ANY

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.running.end_state import FirstValues, LastCalls, LostOutputs, end_state
from precaudit.running.modes import eval_mode


class Averages(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(16))
        self.register_buffer("steady", torch.ones(1000))
        self.register_buffer("rounded", torch.ones(16))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("ids", torch.arange(16))
        self.register_buffer("none", None)
        self.register_buffer("low", torch.ones(4, 8, dtype=torch.bfloat16))

    def forward(self, x):
        self.mean += 0.5
        self.low -= 2
        self.rounded *= 1 + 1e-6
        self.count += 1
        return x


class Giving(nn.Module):
    def forward(self, value, x):
        return {"x": x * torch.tensor([1.0, value]), "n": torch.arange(2)}


class Unsliced(torch.Tensor):
    """Like a medical image that can't tell which of its metadata belong to a slice, or to a sum."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.stack, torch.Tensor.float):
            raise ValueError("inconsistent metadata")
        return super().__torch_function__(func, types, args, kwargs)


class Quantized(torch.Tensor):
    """Like a state of an 8-bit optimizer, which implements the operations of its optimizer's step alone."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(torch.empty(args[0].shape))
        raise NotImplementedError(func)


@pytest.mark.parametrize("value", [1.0, math.inf])
def test_states_that_hold_codes_for_their_values(value):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight] = {"code": Quantized(torch.ones(2)), "plain": torch.tensor([1.0, value])}
    ended = end_state(ModuleScopes(ModuleNames()), [optimizer], {}, FirstValues())
    assert ended.optimizer_state == (() if value == 1.0 else ("SGD.plain",))


def test_outputs_of_a_tensor_subclass():
    model, names = nn.Linear(3, 3), ModuleNames()
    call = (model, (torch.ones(2, 3).as_subclass(Unsliced),), {})
    ended = end_state(ModuleScopes(names), [], {"model": call}, FirstValues())
    assert ended.evaluations["model"] == (True, ANY)


def test_losses_made_in_each_step_are_freed():
    names, last = ModuleNames(), LastCalls()
    scopes = ModuleScopes(names)
    scopes.listeners.append(last)

    def train():
        model, made = nn.Linear(3, 1), []
        for _ in range(4):
            criterion = nn.MSELoss()
            made.append(weakref.ref(criterion))
            criterion(model(torch.ones(2, 3)), torch.ones(2, 1))
        return made

    with scopes.installed():
        made = train()
    assert [criterion() for criterion in made] == [None] * 4
    assert list(last.calls) == ["model"]


def test_a_model_made_anew_replaces_the_one_that_the_script_has_dropped():
    """As in cross-validation or federated training; the last one is kept when its function returns."""
    names, last = ModuleNames(), LastCalls()
    names.before_naming = last.release
    scopes = ModuleScopes(names)
    scopes.listeners.append(last)

    def train():
        model = nn.Linear(3, 1)
        model(torch.ones(2, 3))
        return weakref.ref(model)

    teacher = nn.Linear(3, 3)
    with scopes.installed():
        teacher(torch.ones(2, 3))
        made = [train() for _ in range(3)]
    assert [model() is None for model in made] == [True, True, False]
    assert list(last.calls) == ["teacher", "model"]


def test_last_validation_call_is_repeated_too():
    names, last = ModuleNames(), LastCalls()
    scopes = ModuleScopes(names)
    scopes.listeners.append(last)
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight)
    with scopes.installed():
        model(torch.ones(2, 3))
        with torch.no_grad():
            model(torch.full((5, 3), 3e38))
    ended = end_state(scopes, [], last.calls, FirstValues())
    assert {name: finite for name, (finite, _) in ended.evaluations.items()} == {
        "model": True,
        "model outside of training": False,
    }


class Elsewhere(nn.Module):
    """Like a layer of keras, which brings tensors to the device that it computes on."""

    def forward(self, x):
        return torch.empty_like(x, device="cpu") if x.is_meta else x


def test_calls_that_infer_shapes_are_not_repeated():
    names, last = ModuleNames(), LastCalls()
    scopes = ModuleScopes(names)
    scopes.listeners.append(last)
    model = Elsewhere()
    with scopes.installed(), torch.no_grad():
        model(torch.ones(2, 3, device="meta"))
        with FakeTensorMode() as mode:
            nn.Linear(3, 1)(mode.from_tensor(torch.ones(2, 3)))
    assert last.calls == {}


@pytest.mark.parametrize(("value", "lost"), [(math.nan, True), (math.inf, True), (-math.inf, False), (1.0, False)])
def test_first_step_with_nonfinite_outputs(value, lost):
    names, steps = ModuleNames(), iter(range(9))
    outputs = LostOutputs(lambda: next(steps))
    scopes = ModuleScopes(names)
    scopes.listeners.append(outputs)
    with scopes.installed(), torch.inference_mode():
        model = Giving()
        for x in (0.0, 1.0, value, 2.0, value):
            model(x, torch.ones(2))
    assert outputs.first == ({"model": 2} if lost else {})


def test_nonfinite_inputs_excuse_outputs():
    """As of a library that counts operations with uninitialized images."""
    names, last, outputs = ModuleNames(), LastCalls(), LostOutputs(lambda: 0)
    scopes = ModuleScopes(names)
    scopes.listeners += [last, outputs]
    model = nn.Linear(2, 2)
    with scopes.installed(), torch.no_grad():
        model(torch.tensor([1.0, math.nan]))
    assert outputs.first == {}
    assert end_state(scopes, [], last.calls, FirstValues()).evaluations == {}


def test_outputs_inside_functorch_transforms():
    outputs = LostOutputs(lambda: 3)
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(outputs)
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1e38)

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x.as_subclass(Unsliced),)).sum()

    weights = {name: p.detach() for name, p in model.named_parameters()}
    with scopes.installed():
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, torch.tensor([[1.0], [1e3]]))
    assert outputs.first == {"model": 3}


@pytest.mark.parametrize(
    ("change", "elsewhere", "far"),
    [(2e-5, False, 2e-5), (0.0, False, 0.0), (2e-5, True, math.inf)],
)
def test_relative_change_of_trained_weights(change, elsewhere, far):
    model, frozen, first = nn.Linear(16, 4), nn.Linear(4, 4), FirstValues()
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(first)
    trained = [*model.parameters(), *([nn.Parameter(torch.ones(16))] if elsewhere else [])]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    with scopes.installed(), torch.no_grad():
        frozen(model(torch.ones(2, 16)))
        model.weight *= 1 + change
        frozen.weight += 1
    assert end_state(scopes, [optimizer], {}, first).farthest == pytest.approx(far, rel=0.01)
    assert end_state(scopes, [], {}, first).farthest == math.inf


@pytest.mark.parametrize(
    ("started", "far"),
    [
        (1.0, 1e-6),  # another parameter's size is what a bias that starts at zero is measured by
        (0.0, math.inf),
    ],
)
def test_relative_change_of_a_weight_that_starts_at_zero(started, far):
    model, first = nn.Linear(16, 4), FirstValues()
    nn.init.constant_(model.weight, started)
    nn.init.zeros_(model.bias)
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(first)
    with scopes.installed(), torch.no_grad():
        model(torch.ones(2, 16))
        model.bias += 1e-6
    assert first.farthest([model], [torch.optim.SGD(model.parameters(), lr=1.0)]) == pytest.approx(far)


@pytest.mark.parametrize(("row", "far"), [(0, 0.5), (1, math.inf)])
def test_weight_with_few_trained_rows_does_not_count_as_unchanged(row, far):
    """Of 4096 rows the sample has the first value of every 16th."""
    model, first = nn.Embedding(4096, 16), FirstValues()
    nn.init.ones_(model.weight)
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(first)
    with scopes.installed(), torch.no_grad():
        model(torch.tensor([row]))
        model.weight[row] += 0.5
    assert first.farthest([model], [torch.optim.SGD(model.parameters(), lr=1.0)]) == far


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch._neg_view, torch.t])
def test_buffers_of_any_dtype_are_checked(kind):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", kind(ones) if callable(kind) else ones.to(kind))

        def forward(self):
            return self.kept

    ones, first = torch.ones(4, 8), FirstValues()
    model, scopes = Keeps(), ModuleScopes(ModuleNames())
    scopes.listeners.append(first)
    with scopes.installed():
        model()
    assert dict(first.moved(model, model._buffers)) == {"kept": 0.0}


def test_small_trained_head_beside_frozen_weights():
    model, first = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1)), FirstValues()
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(first)
    with scopes.installed(), torch.no_grad():
        model(torch.ones(2, 8))
        model[1].bias *= 2
    assert first.farthest([model], [torch.optim.SGD(model.parameters(), lr=1.0)]) == pytest.approx(1)


def test_rms_of_changed_values():
    model, names, first = nn.Sequential(Averages(), nn.BatchNorm1d(8)), ModuleNames(), FirstValues()
    scopes = ModuleScopes(names)
    scopes.listeners.append(first)
    with scopes.installed():
        for _ in range(3):
            model(torch.full((4, 8), 10.0))
    moved = end_state(ModuleScopes(names), [], {}, first).moved
    assert moved == {
        "0.mean": 1.5,
        "0.steady": 0.0,
        "0.rounded": 0.0,
        "0.low": 6.0,
        "1.running_mean": pytest.approx(10 * (1 - 0.9**3)),
        "1.running_var": pytest.approx(1 - 0.9**3),
    }


def test_parameters_and_buffers_are_separate():
    model, names, first = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), ModuleNames(), FirstValues()
    scopes = ModuleScopes(names)
    scopes.listeners.append(first)
    with scopes.installed():
        model(torch.ones(4, 8))
    with torch.no_grad():
        model[0].weight += 0.5
    ended = end_state(ModuleScopes(names), [], {}, first)
    assert ended.learned == {
        "0.weight": pytest.approx(0.5),
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
    assert set(ended.moved) == {"1.running_mean", "1.running_var"}


class Trains(nn.Linear):
    """Has a loop of its own by torch's name for a mode."""

    def train(self, batches):
        raise AssertionError("nobody asked for this")


def test_own_train_method_is_not_called():
    for model in (Trains(2, 2), nn.Sequential(Trains(2, 2), nn.Dropout(0.9))):
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
        assert all(module.training for module in model.modules())
