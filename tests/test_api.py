"""The Python API, as people call it."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import precaudit
from precaudit.model import Environment
from precaudit.reporting.headline import headline
from precaudit.reporting.serialize import write_json


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batches():
    generator = torch.Generator().manual_seed(int(torch.randint(0, 1000, ())))
    weight = torch.ones(8, 1)
    for _ in range(10):
        x = torch.randn(64, 8, generator=generator)
        yield x, x @ weight


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def trained(model, optimizer, steps=4):
    torch.manual_seed(5)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


# ---------------------------------------------------------------- profile


@pytest.fixture(scope="module")
def report():
    return precaudit.profile(build_model, batches, loss, build_optimizer=adam, steps=20, formats=["bf16"])


def test_profile_audits_plans_and_verifies(report):
    assert isinstance(report, precaudit.Report)
    assert report.plan.default == "bfloat16"
    assert report.plan.modules == {"0": "bfloat16", "1": "bfloat16", "2": "bfloat16"}
    assert report.verification.verdict in ("pass", "inconclusive")
    assert report.verification.execution == ("native" if torch.cuda.is_available() else "emulated")
    assert {trial.plan for trial in report.verification.trials} >= {"reference", "candidate-1"}
    assert [layer.fqn for layer in report.layers] == ["0", "1", "2"]
    assert report.job["script"] == "build_model"
    assert report.job["steps"] == 20


def test_a_report_is_written_and_loaded_again(report, tmp_path):
    write_json(tmp_path / "report.json", report)
    write_json(tmp_path / "plan.json", report.plan)
    assert precaudit.load_report(tmp_path / "report.json").plan == report.plan
    assert precaudit.load_plan(tmp_path / "plan.json") == report.plan
    assert precaudit.load_plan(str(tmp_path / "plan.json")) == report.plan
    assert report.plan.verdict_on == report.plan.digest


def test_a_folder_that_a_profile_wrote_stands_for_its_files(report, tmp_path):
    for load in (precaudit.load_report, precaudit.load_plan, lambda path: precaudit.apply(build_model(), path)):
        with pytest.raises(precaudit.PrecauditError, match=r"a folder without (report|plan)\.json"):
            load(tmp_path)
    write_json(tmp_path / "report.json", report)
    write_json(tmp_path / "plan.json", report.plan)
    assert precaudit.load_report(str(tmp_path)).plan == precaudit.load_plan(tmp_path) == report.plan
    precaudit.apply(build_model(), tmp_path).remove()


def test_the_plan_trains_the_model(report):
    model = build_model()
    scaler = report.plan.grad_scaler("cpu")
    assert not scaler.is_enabled()
    with precaudit.apply(model, report.plan):
        assert model(torch.ones(2, 8)).dtype == torch.float32


def test_report_has_data_frames(report):
    layers = report.to_frame()
    assert set(layers["fqn"]) == {"0", "1", "2"}
    assert len(report.to_frame("ops")) > 0


def test_random_state_of_the_caller_is_kept():
    def numbers():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    for seeding in (random.seed, np.random.seed, torch.manual_seed):
        seeding(3)
    expected = numbers()
    for seeding in (random.seed, np.random.seed, torch.manual_seed):
        seeding(3)
    precaudit.profile(build_model, batches, loss, steps=5, formats=["bf16"], verify=False)
    assert numbers() == expected
    assert torch.overrides._get_current_function_mode_stack() == []


def test_error_of_the_caller_is_the_cause():
    def wrong(model, batch):
        raise ZeroDivisionError("in the loss")

    with pytest.raises(precaudit.PrecauditError) as caught:
        precaudit.profile(build_model, batches, wrong, steps=5)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_verdict_without_verification():
    report = precaudit.profile(build_model, batches, loss, steps=6, formats=["fp16"], verify=False)
    assert report.verification.verdict == "not_run"
    assert report.plan.loss_scale.mode == "dynamic"
    assert report.plan.grad_scaler("cpu").get_scale() == report.plan.loss_scale.init_scale


def test_the_default_optimizer_is_adamw():
    report = precaudit.profile(build_model, batches, loss, steps=5, verify=False)
    names = {t.name for t in report.layers[0].tensors if t.role == "optimizer_state"}
    assert names == {"weight.exp_avg", "weight.exp_avg_sq", "bias.exp_avg", "bias.exp_avg_sq"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"seeds": 0}, "seeds"),
        ({"formats": ["bf17"]}, "unknown number format"),
        ({"target": "abacus"}, "abacus"),
        ({"target": "v100", "formats": ["fp8"]}, "float8_e4m3"),
        ({"price": -1.0}, "price"),
        ({"price": "2"}, "price"),
        ({"price": math.inf}, "price"),
        ({"device": "gpu"}, "device must be cpu, cuda, cuda:1"),
        ({"steps": 2.5}, "whole number of at least 1, not 2.5"),
        ({"seeds": True}, "whole number"),
        ({"formats": "bf17"}, "unknown number format 'bf17'"),
        ({"formats": [16]}, "names of number formats"),
        ({"formats": 16}, "names of number formats"),
        ({"target": 100}, "name of a GPU, not 100"),
        ({"execution": "gpu"}, "execution must be one of auto, native, emulated, not 'gpu'"),
        ({"batches": iter(batches())}, "batches is used up by the first run"),
    ],
)
def test_wrong_options_are_explained(options, message):
    """Batches that are a generator have none for the second run."""
    with pytest.raises(precaudit.PrecauditError, match=message):
        precaudit.profile(**{"build_model": build_model, "batches": batches, "loss": loss} | options)


def on_a_gpu_machine(monkeypatch):
    found = Environment(device="NVIDIA H200", cuda="13.0")
    monkeypatch.setattr("precaudit.profiling.engine.environment", lambda *_: found)


def test_a_training_on_the_cpu_of_a_gpu_machine_is_emulated(monkeypatch):
    """The CPU's own autocast is no evidence."""
    on_a_gpu_machine(monkeypatch)
    monkeypatch.setattr(torch, "autocast", None)
    report = precaudit.profile(build_model, batches, loss, steps=10, quick=True, formats=["bf16"])
    assert report.verification.execution == "emulated"
    assert report.verification.verdict == "screened"


def test_what_was_asked_to_run_natively_is_not_emulated(monkeypatch):
    on_a_gpu_machine(monkeypatch)
    with pytest.raises(precaudit.PrecauditError, match="needs a model on a CUDA device"):
        precaudit.profile(build_model, batches, loss, steps=10, quick=True, execution="native")


def test_a_function_that_raises_is_shown():
    def broken(model, batch):
        raise ValueError("wrong labels")

    with pytest.raises(precaudit.PrecauditError, match="ValueError: wrong labels") as caught:
        precaudit.profile(build_model, batches, broken, steps=5)
    assert caught.value.exit_code == 4


def test_keyboard_interrupt_reaches_the_caller():
    """As an error of a profile it would only fail a test, and the next would start."""
    calls = []

    def interrupted(model, batch):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        precaudit.profile(build_model, batches, interrupted, steps=4, verify=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_mode_of_the_caller_is_kept(mode):
    with mode():
        report = precaudit.profile(build_model, batches, loss, steps=4, verify=False)
        assert not torch.is_grad_enabled()
    assert report.plan.is_low_precision


def test_a_model_that_was_trained_in_the_run_before_is_refused():
    model = build_model()
    with pytest.raises(precaudit.PrecauditError, match="returned the one of the run before"):
        precaudit.profile(lambda: model, batches, loss, steps=4)
    assert precaudit.profile(lambda: copy.deepcopy(model), batches, loss, steps=4, verify=False).layers


def test_nothing_to_train_on():
    with pytest.raises(precaudit.PrecauditError, match="no batch"):
        precaudit.profile(build_model, list, loss, steps=5)


# ---------------------------------------------------------------- audit


def test_audit_of_a_custom_loop():
    model = build_model()
    optimizer = adam(model)
    reference = copy.deepcopy(model)
    expected = trained(reference, adam(reference))
    with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
        assert trained(model, optimizer) == expected
    report = audit.report()
    assert report.verification.verdict == report.plan.verdict == "not_run"
    assert report.plan.verdict_on == report.plan.digest
    assert report.job["audited_steps"] == report.job["steps"] == 4
    assert [layer.calls for layer in report.layers] == [4, 4, 4]
    assert report.plan.modules.keys() == {"0", "1", "2"}
    assert set(audit.to_frame()["fqn"]) == {"0", "1", "2"}
    assert "<" in audit._repr_html_()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_an_audit_may_be_asked_while_it_runs():
    model = build_model()
    optimizer = adam(model)
    with precaudit.audit(model, optimizer=optimizer, every=2) as audit:
        trained(model, optimizer)
        assert audit.report().job["audited_steps"] == 2
        trained(model, optimizer)
    assert audit.report().job["audited_steps"] == 4


class Elementwise(nn.Linear):
    """Compares its values, as a library's tensor dictionaries do: the answer has no truth value."""

    def __eq__(self, other):
        return self.weight == other.weight

    __hash__ = nn.Module.__hash__


def test_modules_that_compare_their_values_are_told_apart_by_identity():
    model = nn.Sequential(Elementwise(4, 4), Elementwise(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
        for _ in range(2):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
    assert [layer.fqn for layer in audit.report().layers] == ["0", "1"]


def test_an_audit_that_saw_nothing_says_so_and_doesn_t_fail():
    with precaudit.audit(build_model()) as audit:
        pass
    report = audit.report()
    assert report.layers == ()
    assert report.job["steps"] == 0
    assert not report.plan.is_low_precision
    assert headline(report).title == "NOTHING MEASURED: no step of this model was seen"


def test_an_audit_ends_when_the_loop_raises():
    model = build_model()
    audit = precaudit.audit(model, every=1)

    def loop():
        model(torch.ones(2, 8)).sum().backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), audit:
        loop()
    assert audit.report().job["steps"] == 1
    assert all(not p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "at least 1"),
        ({"every": -1}, "at least 1"),
        ({"every": 2.5}, "whole number"),
        ({"model": [nn.Linear(2, 2)]}, "model must be a torch.nn.Module"),
        ({"optimizer": "adam"}, "optimizer must be a torch optimizer"),
    ],
)
def test_an_audit_of_something_else_is_refused(arguments, message):
    with pytest.raises(precaudit.PrecauditError, match=message):
        precaudit.audit(**{"model": build_model()} | arguments)


class Counts(nn.Module):
    """Multiplies whole numbers that float16 doesn't tell apart."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, x):
        return self.scale(3000.0 + torch.arange(4.0)[:, None] + 0 * x) / 3000


def test_an_audit_plans_with_every_rule():
    model = Counts()
    optimizer = adam(model)
    with precaudit.audit(model, optimizer=optimizer) as audit:
        model(torch.ones(4, 1)).sum().backward()
        optimizer.step()
    assert "PA105" in {finding.rule for finding in audit.report().findings}


def audited(model, optimizer, batches, scaler=None):
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
        for batch in batches:
            optimizer.zero_grad()
            scaler.scale(model(batch).float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    return audit.report()


def rules(report):
    return {finding.rule: finding for finding in report.findings}


def test_an_audit_tells_when_the_training_is_lost():
    model, broken = build_model(), torch.ones(4, 8)
    broken[0, 0] = math.nan
    sound = audited(model, adam(model), [torch.ones(4, 8)] * 2)
    assert "PA308" not in rules(sound)
    lost = rules(audited(model, adam(model), [torch.ones(4, 8), broken, torch.ones(4, 8)]))["PA308"]
    assert lost.severity == "error"
    assert "weights are nan or inf (0, 2)" in lost.message


def test_a_step_that_a_scaler_skips_loses_no_training():
    model, broken = build_model(), torch.full((4, 8), math.inf)
    report = audited(model, adam(model), [broken, torch.ones(4, 8)], torch.amp.GradScaler("cpu"))
    assert report.layers[0].tensor("weight_grad").stats.nonfinite
    assert "PA308" not in rules(report)


def test_an_audit_sees_updates_of_half_weights_that_are_rounded_away():
    model = build_model().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6)
    report = audited(model, optimizer, torch.randn(4, 4, 8).bfloat16())
    assert rules(report)["PA301"].severity == "error"


def grads(report):
    return report.layers[0].tensor("weight_grad").stats.amax


@pytest.mark.parametrize("scales", [(2.0**10, None), (2.0**12, 2.0**3), (2.0**14, None)])
def test_gradients_are_told_without_the_scale_that_is_in_them_and_no_other(scales):
    """One scaler for a loss, another or none for the next, in one step."""
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None) for scale in scales]
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
        for scaler in scalers:
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 1), 0.25)).sum()).backward()
            assert model.weight.grad.item() == 0.25 * scaler.get_scale()
        model.weight.grad.fill_(0.25)
        optimizer.step()
        optimizer.zero_grad()
        model.weight.grad = torch.full((1, 1), 0.125)
        optimizer.step()
    assert grads(audit.report()) == 0.25


@pytest.mark.parametrize("scale", [0.0, math.inf])
def test_lost_scale_does_not_end_audited_training(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    model = build_model()
    optimizer = adam(model)
    with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
        scaler.scale(model(torch.ones(4, 8)).sum()).backward()
        optimizer.step()
    assert audit.steps == 1


def test_an_audit_that_runs_is_not_begun_again():
    audit = precaudit.audit(build_model(), every=1)
    with audit, pytest.raises(precaudit.PrecauditError, match="running already"):
        audit.__enter__()
    with audit:
        pass


def test_a_step_that_raised_hides_no_step_of_another_optimizer():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ZeroDivisionError

    model = build_model()
    broken, sound = Broken(model.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.1)
    with precaudit.audit(model, optimizer=[broken, sound], every=1) as audit:
        for _ in range(3):
            model(torch.ones(4, 8)).sum().backward()
            with pytest.raises(ZeroDivisionError):
                broken.step()
            sound.step()
    assert audit.steps == 3


def test_a_backward_pass_may_begin_at_an_edge_of_the_graph():
    model = build_model()
    with precaudit.audit(model, every=1):
        loss = model(torch.ones(4, 8)).sum()
        torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), torch.ones(()))
    assert model[0].weight.grad is not None


def test_copies_of_the_weights_take_no_memory_between_recorded_steps():
    model = build_model()
    optimizer = adam(model)
    with precaudit.audit(model, optimizer=optimizer, every=2) as audit:
        trained(model, optimizer, steps=2)
        assert audit._auditing.tracer.recording
        trained(model, optimizer, steps=1)
        assert not audit._auditing.tracer.parameters._buffers


@pytest.mark.parametrize("wrong", ["bf15", "", "float32x"])
def test_a_plan_has_formats_by_any_of_their_names_and_no_others(wrong):
    plan = precaudit.Plan("bf16", {"0": "fp16"})
    assert (plan.default, plan.modules["0"]) == ("bfloat16", "float16")
    with pytest.raises(precaudit.PrecauditError, match="unknown number format"):
        precaudit.Plan(modules={"0": wrong})


def test_copy_of_a_planned_model_has_no_plan():
    model, x = build_model(), torch.randn(4, 8)
    exact = model(x)
    with precaudit.apply(model, precaudit.Plan("bf16")):
        copied, rounded = copy.deepcopy(model), model(x)
        with pytest.raises(precaudit.PrecauditError, match=r"precaudit\.remove"):
            precaudit.apply(copied, precaudit.Plan("fp16"))
        precaudit.remove(copied)
        assert torch.equal(copied(x), exact)
        assert torch.equal(model(x), rounded)
        precaudit.apply(copied, precaudit.Plan("fp16"))
    assert not torch.equal(rounded, exact)


def test_a_report_is_saved_by_the_extension_of_each_file(tmp_path):
    model = build_model()
    report = audited(model, adam(model), [torch.ones(4, 8)])
    with pytest.raises(precaudit.PrecauditError, match="unknown"):
        report.save(tmp_path / "report.json", tmp_path / "report.docx")
    assert not list(tmp_path.iterdir())
    report.save(tmp_path / "report.json", str(tmp_path / "plan.json"), tmp_path / "report.md")
    assert precaudit.load_report(tmp_path / "report.json").findings == report.findings
    assert precaudit.load_plan(tmp_path / "plan.json") == report.plan
    assert "NOT VERIFIED" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "model"}, "model must be a torch.nn.Module, not str$"),
        ({"plan": None}, "plan must be a Plan or the path"),
        ({"plan": precaudit.Report()}, "path of a plan.json, not Report$"),  # whose text has no end
        ({"execution": "gpu"}, "execution must be one of"),
    ],
)
def test_a_plan_for_something_else_is_refused(arguments, message):
    with pytest.raises(precaudit.PrecauditError, match=message):
        precaudit.apply(**{"model": build_model(), "plan": precaudit.Plan()} | arguments)


# ---------------------------------------------------------------- load


@pytest.mark.parametrize("load", ["load_report", "load_plan"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"plan": 3}', '{"schema_version": 99}'])
def test_value_that_is_not_a_report_is_refused(load, content, tmp_path):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(precaudit.PrecauditError, match=r"file\.json"):
        getattr(precaudit, load)(path)


def test_the_public_names():
    assert set(precaudit.__all__) <= set(dir(precaudit))
    for name in precaudit.__all__:
        assert getattr(precaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        precaudit.nonsense  # noqa: B018
