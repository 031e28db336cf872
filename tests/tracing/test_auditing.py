"""Auditing somebody's own loop: sampled, un-scaled, exact, and gone afterwards."""

from unittest import mock
from weakref import ref

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils import checkpoint
from training_styles import numbers

from precaudit.histograms import Accumulator, Addition
from precaudit.tracing import waiting
from precaudit.tracing.auditing import Auditing, is_rarer
from precaudit.tracing.waiting import WaitingGradients


def trained(model, optimizer, steps=4, scaler=None):
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(numbers(step, 5, 4)).square().mean()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_model_is_audited_in_its_eager_form(every):
    torch.compiler.reset()
    plain, compiled = make(), make()
    expected = trained(*plain)
    model = torch.compile(compiled[0], backend="eager")
    auditing = Auditing(model, compiled[1:], every)
    auditing.start()
    try:
        losses = trained(model, compiled[1])
    finally:
        auditing.stop()
    assert losses == expected
    assert {each.type for each in auditing.trace().layers} >= {"Linear", "Tanh"}
    assert trained(model, compiled[1]) == trained(*plain)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, numbers(0, 5, 4))])
def test_what_torchscript_compiled_is_trained_as_ever_and_told_from_outside(compiled):
    expected, (model, _) = trained(*make()), make()
    model = compiled(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    auditing = Auditing(model, (optimizer,), 1)
    auditing.start()
    try:
        losses = trained(model, optimizer)
    finally:
        auditing.stop()
    assert losses == pytest.approx(expected)
    trace = auditing.trace()
    assert (trace.audited_steps, trace.layers[0].fqn) == (4, "")


@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_optimizer_step_is_audited(every):
    torch.compiler.reset()
    plain, compiled = make(), make()
    expected = trained(*plain)
    auditing = Auditing(compiled[0], compiled[1:], every)
    auditing.start()
    try:
        step = torch.compile(compiled[1].step, backend="eager")
        losses = trained(compiled[0], mock.Mock(wraps=compiled[1], step=step))
    finally:
        auditing.stop()
    assert losses == pytest.approx(expected, rel=1e-4)  # compiled steps round differently
    assert auditing.steps == 4
    assert auditing.trace().audited_steps == 4 // every


def layer(auditing, fqn):
    return next(each for each in auditing.trace().layers if each.fqn == fqn)


@pytest.mark.parametrize(("every", "recorded"), [(1, 4), (2, 2), (3, 2), (10, 1)])
def test_every_nth_step_is_recorded(every, recorded):
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], every)
    auditing.start()
    trained(model, optimizer)
    auditing.stop()
    assert auditing.steps == 4
    assert auditing.trace().audited_steps == recorded
    assert layer(auditing, "0").tensor("activation").stats.numel == recorded * 20


def test_training_is_exact_and_torch_is_restored():
    model, optimizer = make()
    expected = trained(model, optimizer)
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 1)
    auditing.start()
    assert trained(model, optimizer) == expected
    auditing.stop()
    assert all(not p._backward_hooks for p in model.parameters())
    counted = auditing.trace()
    trained(model, optimizer)
    assert auditing.trace() == counted


def test_gradients_are_recorded_without_the_scaler_s_scale():
    plain, scaled = make(), make()
    first, second = Auditing(plain[0], plain[1:], 1), Auditing(scaled[0], scaled[1:], 1)
    first.start()
    trained(*plain)
    first.stop()
    second.start()
    trained(*scaled, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    second.stop()
    for fqn in ("0", "2"):
        for role in ("weight_grad", "activation_grad"):
            assert layer(first, fqn).tensor(role).stats == layer(second, fqn).tensor(role).stats


def test_other_models_are_not_audited():
    model, optimizer = make()
    other = nn.Linear(4, 4)
    auditing = Auditing(model, [optimizer], 1)
    auditing.start()
    other(numbers(0, 5, 4)).sum().backward()
    trained(model, optimizer)
    auditing.stop()
    assert {each.fqn for each in auditing.trace().layers} == {"0", "1", "2"}


def test_replaced_submodule_is_audited_under_the_model():
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 1)
    auditing.start()
    try:
        trained(model, optimizer)
        model[2] = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        trained(model, torch.optim.Adam(model.parameters(), lr=0.01))
    finally:
        auditing.stop()
    trace = auditing.trace()
    assert trace.models == ("model",)
    assert {layer.fqn for layer in trace.layers} >= {"0", "2", "2.0", "2.1"}


def test_an_audit_is_called_after_the_model_that_was_wrapped():
    model = make()[0]
    assert Auditing(torch.compile(model), (), 1).name == Auditing(model, (), 1).name == "Sequential"


def test_without_an_optimizer_a_backward_pass_is_a_step():
    model = nn.Linear(4, 1)
    auditing = Auditing(model, [], 1)
    auditing.start()
    for step in range(3):
        model(numbers(step, 5, 4)).sum().backward()
    auditing.stop()
    assert auditing.steps == 3


@pytest.mark.parametrize("made_before", [True, False])
def test_steps_of_an_unnamed_optimizer(made_before):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01) if made_before else None
    auditing = Auditing(model, [], 1)
    auditing.start()
    trained(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.01))
    auditing.stop()
    assert auditing.steps == auditing.trace().audited_steps == 4


@pytest.mark.parametrize("named", [True, False])
def test_two_audits_count_their_own_steps(named):
    (first, one), (second, two) = make(), make()
    audits = Auditing(first, [one] * named, 1), Auditing(second, [two] * named, 1)
    for auditing in audits:
        auditing.start()
    trained(first, one, steps=2)
    trained(second, two, steps=5)
    for auditing in audits:
        auditing.stop()
    assert [auditing.steps for auditing in audits] == [2, 5]


def global_state():
    scale, stance = torch.amp.GradScaler.scale, torch._dynamo.eval_frame._stance
    return scale, torch.autograd.backward, torch.optim.Optimizer.__init__, checkpoint.CheckpointFunction.forward, stance


def test_audits_that_end_in_the_order_of_their_start_leave_nothing():
    before = global_state()
    audits = [Auditing(model, [optimizer], 1) for model, optimizer in (make(), make())]
    for auditing in audits:
        auditing.start()
    audits[0].stop()
    assert torch.amp.GradScaler.scale is not before[0]
    audits[1].stop()
    assert global_state() == before


def test_local_errors_are_measured_at_growing_intervals():
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 2, ("float16",))
    auditing.start()
    shadowed = [trained(model, optimizer, steps=1) and auditing.tracer._shadowing for _ in range(130)]
    auditing.stop()
    assert is_rarer(1)
    assert [step + 1 for step, each in enumerate(shadowed) if each] == [14, 126]
    assert next(op for op in auditing.trace().ops if op.op == "linear").local_error["float16"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_shadowed_steps_are_exact_under_the_loop_s_own_autocast(dtype):
    def step(model, optimizer):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(numbers(0, 5, 4)).float().square().mean()
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters()), *(p.clone() for p in model.parameters())]

    plain, audited = make(), make()
    expected = step(*plain)
    auditing = Auditing(audited[0], audited[1:], 1, ("bfloat16", "float16", "tf32"))
    auditing.start()
    made = step(*audited)
    auditing.stop()
    assert all(map(torch.equal, expected, made))
    assert all(op.local_error["float16"] > 0 for op in auditing.trace().ops if op.op == "linear")


def test_audit_can_restart():
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 1)
    for _ in range(2):
        auditing.start()
        trained(model, optimizer, steps=2)
        auditing.stop()
        trained(model, optimizer, steps=1)
    assert auditing.steps == 4
    assert layer(auditing, "0").tensor("weight_grad", "weight").stats.numel == 4 * 16


def test_unrecorded_step_has_no_hooks():
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 2)
    auditing.start()
    for step in range(4):
        recorded = step % 2 == 0
        assert bool(hooks._global_forward_pre_hooks) is bool(hooks._global_forward_hooks) is recorded
        trained(model, optimizer, steps=1)
        assert recorded or not any(p._backward_hooks for p in model.parameters())
    auditing.stop()
    assert not hooks._global_forward_pre_hooks
    assert auditing.trace().audited_steps == 2
    assert layer(auditing, "0").tensor("weight_grad", "weight").stats.numel == 2 * 16


def test_results_are_freed_with_the_scripts_references():
    model, _ = make()
    auditing = Auditing(model, [], 16)
    auditing.start()
    result = model(numbers(0, 5, 4))
    gone = ref(result)
    del result
    assert gone() is None
    auditing.stop()


@pytest.mark.filterwarnings("error")
def test_a_result_is_saved_without_a_warning(tmp_path):
    model, optimizer = make()
    auditing = Auditing(model, [optimizer], 1)
    auditing.start()
    result = model(numbers(0, 5, 4))
    torch.save(result, tmp_path / "result.pt")
    auditing.stop()
    assert torch.equal(torch.load(tmp_path / "result.pt"), result)


def accumulated(model, optimizer, steps=3):
    """Two micro-batches a step, the second through the first layer twice, in backward passes of its own."""
    for step in range(steps):
        optimizer.zero_grad()
        model(numbers(step, 5, 4)).sum().backward()
        model(numbers(step + 9, 3, 4)).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("limit", [0, 2**28])
def test_delayed_gradients_are_counted_equally(monkeypatch, limit):
    at_once, later = make(), make()
    first, second = Auditing(at_once[0], at_once[1:], 1), Auditing(later[0], later[1:], 1)
    first.start()
    expected = accumulated(*at_once)
    first.stop()
    monkeypatch.setattr("precaudit.tracing.parameters.may_wait", lambda parameter, gradient: True)
    monkeypatch.setattr("precaudit.tracing.waiting.LIMIT", limit)
    second.start()
    assert all(map(torch.equal, expected, accumulated(*later)))
    second.stop()
    assert not second.tracer.parameters._waiting._waiting
    assert first.trace().layers == second.trace().layers


def test_delayed_gradient_is_not_copied():
    parameter, other = torch.ones(4, requires_grad=True), WaitingGradients()
    slot, seen = Accumulator(), []

    def hook(gradient):
        seen.append(gradient.data_ptr())
        other.add(parameter, Addition(slot, gradient.detach()))

    parameter.register_hook(hook)
    parameter.square().sum().backward()
    assert seen == [parameter.grad.data_ptr()]
    assert slot.stats().numel == 4


def test_gradients_with_hooks_are_counted_at_once():
    class OnGpu(torch.Tensor):
        is_cuda = True

    parameter = torch.ones(4, requires_grad=True)
    parameter.register_hook(lambda gradient: None)
    with mock.patch.object(waiting, "type", create=True, return_value=torch.Tensor):
        gradient = torch.ones(4).as_subclass(OnGpu)
        assert waiting.may_wait(parameter, gradient)
        handle = parameter.register_hook(lambda gradient: gradient.mul_(2))
        assert not waiting.may_wait(parameter, gradient)
        handle.remove()
        parameter.register_post_accumulate_grad_hook(lambda parameter: None)
        assert not waiting.may_wait(parameter, gradient)
    assert not waiting.may_wait(parameter, torch.ones(4))
