"""Module scopes: entered, left, and unwound whatever a forward does."""

import gc
import linecache
import weakref

import pytest
import torch
from instrumented import recorded
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes

X = torch.ones(2, 2)


class Block(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.function = forward

    def forward(self, x, **options):
        return self.function(self, x)


def stop(kind):
    def forward(block, x):
        block.lin(x)
        raise kind("stop")

    return forward


def test_frames_nest_and_know_their_root():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    depths = []

    class Depth:
        def entered(self, frame):
            depths.append((frame.name.fqn, frame.is_outermost, frame.root.module is model))

        def left(self, frame, output):
            return output

    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(Depth())
    with scopes.installed():
        assert scopes.current is None
        model(X)
        assert scopes.current is None
    assert depths == [("", True, True), ("0", False, True), ("0.0", False, True)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("caught_inside", [True, False])
def test_an_exception_leaves_every_frame(caught_inside):
    inner = Block(stop(ValueError))

    def forward(block, x):
        if not caught_inside:
            return inner(x)
        try:
            return inner(x)
        except ValueError:
            return block.lin(x)

    model = nn.Sequential(Block(forward))
    model.inner = inner
    with recorded() as (recorder, scopes, _):
        if caught_inside:
            model[0](X)
        else:
            with pytest.raises(ValueError, match="stop"):
                model[0](X)
        assert scopes.current is None
        assert scopes.raised_in == "model:inner"
        assert len(recorder.left_names) == len(recorder.entered_names)
        model[0].lin(X)
        assert scopes.raised_in is None


def test_interrupted_frames_are_closed_when_the_hooks_are_removed():
    model = nn.Sequential(Block(stop(KeyboardInterrupt)))
    with recorded() as (recorder, scopes, _), pytest.raises(KeyboardInterrupt):
        model(X)
    assert scopes.current is None
    assert len(recorder.left_names) == len(recorder.entered_names) == 3


def test_the_next_call_ends_a_forward_that_an_interrupt_cut_short():
    model = nn.Sequential(Block(stop(KeyboardInterrupt)))
    with recorded() as (recorder, scopes, _):
        with pytest.raises(KeyboardInterrupt):
            model(X)
        model[0].lin(X)
        assert scopes.current is None
    assert recorder.left_names == [("0.lin", True), ("0", False), ("", False), ("0.lin", True)]


def test_module_that_returns_none_has_not_raised():
    model = nn.Sequential(nn.Linear(2, 2))
    model.silent = Block(lambda block, x: None)
    with recorded() as (recorder, scopes, _):
        model.silent(X)
        assert scopes.raised_in is None
        assert recorder.left_names == [("silent", False)]


def test_listeners_may_replace_the_output_and_see_the_call():
    class Doubling:
        def entered(self, frame):
            pass

        def left(self, frame, output):
            self.call = frame.call
            return output * 2

    listener, scopes = Doubling(), ModuleScopes(ModuleNames())
    scopes.listeners.append(listener)
    model = Block(lambda block, x: x + 1)
    with scopes.installed():
        assert torch.equal(model(X, flag=3), 2 * (X + 1))
    assert torch.equal(listener.call[0][0], X)
    assert listener.call[1] == {"flag": 3}


def test_listeners_leave_in_the_opposite_order():
    order = []

    class Named:
        def __init__(self, name):
            self.name = name

        def entered(self, frame):
            order.append(f"in {self.name}")

        def left(self, frame, output):
            order.append(f"out {self.name}")
            return output

    scopes = ModuleScopes(ModuleNames())
    scopes.listeners += [Named("a"), Named("b")]
    with scopes.installed():
        nn.Linear(2, 2)(X)
    assert order == ["in a", "in b", "out b", "out a"]


def test_only_one_model_if_asked():
    model, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    seen = []

    class Seen:
        def entered(self, frame):
            seen.append(frame.module)

        def left(self, frame, output):
            return output

    scopes = ModuleScopes(ModuleNames(), only=model)
    scopes.listeners.append(Seen())
    with scopes.installed():
        model(X)
        other(X)
    assert seen == [model, model[0]]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_functions_run_again_in_their_scope(reentrant):
    current = []

    def forward(block, x):
        def inner(y):
            frame = scopes.current
            current.append(None if frame is None else (frame.name.fqn, torch.is_grad_enabled()))
            return block.lin(y).relu()

        return checkpoint(inner, x, use_reentrant=reentrant)

    model = nn.Sequential(Block(forward))
    with recorded() as (_, scopes, _):
        model(X.clone().requires_grad_()).sum().backward()
        assert scopes.current is None
    assert current == [("0", not reentrant), ("0", True)]


def test_a_checkpoint_outside_any_module_is_left_alone():
    weight = torch.ones(2, requires_grad=True)
    with recorded():
        checkpoint(lambda w: (w * 3).exp(), weight, use_reentrant=False).sum().backward()
    torch.testing.assert_close(weight.grad, 3 * torch.full((2,), 3.0).exp())


def test_nothing_stays_installed():
    before = [dict(value) for name, value in vars(torch_modules).items() if name.startswith("_global_") and value]
    original = checkpointing.CheckpointFunction.forward
    scopes = ModuleScopes(ModuleNames())
    with pytest.raises(ZeroDivisionError), scopes.installed():
        raise ZeroDivisionError
    after = [dict(value) for name, value in vars(torch_modules).items() if name.startswith("_global_") and value]
    assert before == after
    assert checkpointing.CheckpointFunction.forward is original


def test_models_and_batches_are_freed_with_their_last_reference():
    gc.collect()
    gc.disable()
    try:
        with recorded():
            model, batch = nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2)
            model(batch)
            gone = weakref.ref(model), weakref.ref(batch)
            model = batch = layer_free_name = None  # noqa: F841
            nn.Linear(2, 2)(X)
            assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_a_forward_that_is_called_past_its_module_is_known_with_its_caller():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    scopes = ModuleScopes(ModuleNames())
    with scopes.installed():
        model(X)
        with torch.no_grad():
            model.forward(X)
        model.forward(X)  # to see a shape, say
        assert not scopes.bypassed
        model.forward(X).sum().backward()
    ((name, (path, line)),) = scopes.bypassed.items()
    assert (name.fqn, path) == ("", __file__)
    assert "model.forward" in linecache.getline(path, line)


def test_container_of_an_audited_model_is_not_bypassed():
    inner = nn.Sequential(nn.Linear(2, 2))
    scopes = ModuleScopes(ModuleNames(), only=inner)
    with scopes.installed():
        nn.Sequential(inner)(X)
    assert not scopes.bypassed


class Seen:
    def __init__(self):
        self.names = []

    def entered(self, frame):
        self.names.append((frame.name.model, frame.name.fqn))

    def left(self, frame, output):
        return output


def test_modules_created_in_a_forward_belong_to_it():
    def forward(block, x):
        if not hasattr(block, "kept"):
            block.kept = nn.Linear(2, 2)
        norm = nn.LayerNorm(2)
        return norm(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1))(block.kept(block.lin(x))))

    model, seen = Block(forward), Seen()
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(seen)
    with scopes.installed():
        model(X)
        model(X)
    assert seen.names == [("model", ""), ("model", "lin"), ("model", "kept")] * 2
