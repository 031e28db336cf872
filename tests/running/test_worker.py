"""One run in this process: how it ends, and what a script's code can do to it."""

import sys
from dataclasses import replace
from weakref import ref

import pytest
import torch
from small_runs import BRAIN, plainly, spec, train
from torch import nn
from torch.nn.modules import module as torch_modules

from precaudit.errors import PrecauditError
from precaudit.execution.loss_scaling import LossScaler
from precaudit.instrument.events import TrainingEvents
from precaudit.model import LossScale, Plan
from precaudit.running import end_state
from precaudit.running.job import INTERNAL
from precaudit.running.worker import run


def raises(error, at=3):
    def before_step(step):
        if step == at:
            raise error

    return lambda: train(before_step=before_step)


def test_run_is_stopped_after_its_steps():
    result = run(spec(), train)
    assert (result.status, result.steps, len(result.losses), result.backward_calls) == ("stopped", 6, 6, 6)
    assert result.counted == "optimizer steps"
    assert len(result.step_seconds) == 6
    assert result.seconds >= sum(result.step_seconds)
    assert result.error is None
    assert result.end_state.parameters == ()


def test_run_that_ends_early():
    result = run(spec(), lambda: train(steps=2))
    assert (result.status, result.steps) == ("ended", 2)


def test_nothing_at_all():
    result = run(spec(), lambda: None)
    assert (result.status, result.steps, result.losses) == ("ended", 0, ())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("bad data"), "failed", None),
        (SystemExit(), "ended", 0),
        (SystemExit(0), "ended", 0),
        (SystemExit(3), "failed", 3),
        (SystemExit("usage: ..."), "failed", 1),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_exceptions_of_scripts_are_reported(error, status, code):
    result = run(spec(), raises(error))
    assert (result.status, result.steps, result.exit_code) == (status, 3, code)
    assert len(result.losses) == 3


def test_of_an_interrupted_script_the_log_shows_where_it_was(capfd):
    run(spec(), raises(KeyboardInterrupt()))
    said = capfd.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert __file__ in said
    assert "/running/worker.py" not in said
    assert said.endswith("KeyboardInterrupt\n")


def test_a_failure_of_a_listener_is_no_failure_of_the_script(monkeypatch):
    def fail(*arguments):
        raise KeyError("missing")

    monkeypatch.setattr(LossScaler, "_inspect", fail)
    scaled = replace(BRAIN, default="float16", loss_scale=LossScale("static", 2.0))
    error = run(spec(precision="plan", plan=scaled), train).error
    assert error.type == INTERNAL
    assert "precaudit itself failed, not the script (KeyError: 'missing')" in error.message
    assert "in fail" in error.traceback


def test_a_listener_without_memory_is_not_to_be_reported(monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(LossScaler, "_inspect", fail)
    scaled = replace(BRAIN, default="float16", loss_scale=LossScale("static", 2.0))
    error = run(spec(precision="plan", plan=scaled), train).error
    assert error.is_lack_of_memory
    assert error.message.endswith("Tried to allocate 2.00 GiB); use a smaller batch or more memory")


def test_a_failure_of_a_scope_s_listener_is_no_failure_of_the_script(monkeypatch):
    monkeypatch.setattr(end_state, "_samples", lambda own: {}["missing"])
    assert run(spec(), train).error.type == INTERNAL


def test_error_that_passes_two_observers_is_the_scripts():
    """As where the script audits its training itself."""

    def code():
        with TrainingEvents().installed():
            torch.ones(1).backward()

    assert run(spec(), code).error.type == "RuntimeError"


def test_a_script_s_failure_is_told_even_where_its_tensors_cannot_be_read_any_more(monkeypatch):
    """As after an assertion on a GPU."""

    def dead(*_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("precaudit.running.assembly.end_state", dead)
    result = run(spec(), raises(IndexError("row 9")))
    assert (result.status, result.error.type, result.error.message) == ("failed", "IndexError", "row 9")
    assert 0 < len(result.losses) <= 3
    with pytest.raises(RuntimeError, match="CUDA"):
        run(spec(), train)


def test_an_exception_comes_with_its_own_frames_and_line():
    result = run(spec(), raises(ValueError("bad data")))
    assert (result.error.type, result.error.message) == ("ValueError", "bad data")
    assert result.error.location.path == __file__
    assert "raise error" in result.error.traceback
    assert "precaudit/running/worker.py" not in result.error.traceback


def test_causes_of_an_exception_are_shown():
    def code():
        try:
            raise KeyError("lr")
        except KeyError as error:
            raise ValueError("no learning rate") from error

    text = run(spec(), code).error.traceback
    assert text.index("KeyError: 'lr'") < text.index("direct cause") < text.index("ValueError: no learning rate")
    group = run(spec(), raises(ExceptionGroup("workers", [OSError("disk 3"), TypeError("batch 7")]))).error.traceback
    assert "OSError: disk 3" in group
    assert "TypeError: batch 7" in group


def test_an_exception_that_cannot_be_shown_is_named():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    error = run(spec(), raises(Mute())).error
    assert error.type == "Mute"
    assert "Mute" in error.traceback


def test_a_model_on_the_meta_device_has_no_state_to_look_at():
    def code():
        model = nn.Linear(4, 1, device="meta")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            model(torch.ones(1, 4, device="meta")).sum().backward()
            optimizer.step()

    assert run(spec(), code).end_state.parameters == ()


def test_a_model_of_each_fold_takes_the_place_of_the_last_and_frees_its_memory():
    folds = []

    def code():
        for _ in range(3):
            train(2, before_step=lambda step: folds.append(ref(sys._getframe(1).f_locals["optimizer"])))

    found = run(spec(), code)
    assert list(found.end_state.evaluations) == ["model"]
    assert folds[0]() is None


def test_parameters_that_were_never_met_have_no_values_to_look_at():
    def code():
        model = nn.Sequential(nn.Linear(4, 1), nn.LazyLinear(1))
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        for _ in range(8):
            model[0](torch.ones(1, 4)).sum().backward()
            optimizer.step()

    assert run(spec(), code).end_state.parameters == ()


def test_a_forward_that_raised_is_named():
    def code():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))
        model(torch.ones(1, 4))

    result = run(spec(), code)
    assert result.status == "failed"
    assert result.error.raised_in == "model:1"
    assert run(spec(), raises(ValueError("elsewhere"))).error.raised_in is None


def test_our_own_errors_pass_through_where_nothing_was_measured():
    def refused():
        raise PrecauditError("nothing to measure")

    with pytest.raises(PrecauditError, match="nothing"):
        run(spec(), refused)
    assert run(spec(), raises(PrecauditError("no model"))).error.traceback == "no model"


def test_script_that_catches_everything_is_stopped():
    steps = []

    def stubborn():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(8):
            try:
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
            except BaseException:
                steps.append(step)

    result = run(spec(), stubborn)
    assert steps == [5, 6, 7]
    assert result.status == "ended"


def exits():
    sys.exit(1)


def raises_another():
    raise RuntimeError("training failed")


@pytest.mark.parametrize("give_up", [exits, raises_another])
def test_errors_after_the_stop_are_no_failure(give_up):
    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            while True:
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
        except BaseException:
            give_up()

    result = run(spec(), code)
    assert (result.status, result.steps, result.error) == ("stopped", 6, None)


def test_progress_is_reported_on_the_way():
    partial = []
    run(spec(), train, partial.append)
    assert partial
    assert {result.status for result in partial} == {"killed"}
    assert [result.steps for result in partial] == sorted(result.steps for result in partial)
    assert partial[0].losses


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt()])
def test_process_is_restored(error):
    def everything():
        return (
            {name: dict(value) for name, value in vars(torch_modules).items() if name.startswith("_global_") and value},
            torch.autograd.backward,
            torch.manual_seed,
            torch.compile,
            torch.amp.GradScaler.__init__,
            torch.autocast.__enter__,
            torch.optim.Optimizer.__init__,
            nn.utils.clip_grad_norm_,
            torch.set_default_dtype,
            torch.overrides._get_current_function_mode_stack(),
        )

    before = everything()
    full = spec(
        plan=BRAIN,
        audited=frozenset({0}),
        shadowed=frozenset({0}),
        formats=("bfloat16",),
        neutralize=True,
        perturbed="float32",
    )
    run(full, raises(error) if error else train)
    assert everything() == before


def test_the_module_that_raised_is_told_though_another_model_answers_afterwards():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return torch.zeros(16, 4).index_add_(0, torch.arange(16), self.lin(x))

    mixing, teacher = Mixing(), nn.Linear(4, 4)
    plan = Plan("bfloat16", {"": "bfloat16", "lin": "bfloat16"})
    result = run(
        spec(precision="plan", plan=plan),
        lambda: train(forward=lambda model, x: mixing(x) + teacher(x)),
    )
    assert result.status == "failed"
    assert result.error.raised_in == "mixing:"
    assert result.error.op == "index_add"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("at", "compiled"),
    [(0, True), (3, False), (None, False)],
    ids=["to train", "for an export", "a function alone"],
)
@pytest.mark.parametrize(
    "by", [lambda model: torch.jit.script(model), lambda model: torch.jit.trace(model, torch.randn(16, 4))]
)
def test_a_module_that_torchscript_takes_is_noted(by, at, compiled):
    def forward(model, x):
        forward.step += 1
        if at is None:
            torch.jit.script(plainly)
        elif forward.step == at + 1:
            by(model)
        return model(x)

    forward.step = 0
    result = run(spec(), lambda: train(forward=forward))
    assert (result.own_precision.scripted is not None) is compiled
    assert not compiled or result.own_precision.scripted.path == __file__


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_graph_that_torch_traces_to_draw_or_export_is_no_forward_of_the_training():
    made = {"__name__": "torch.utils.tensorboard._pytorch_graph", "torch": torch}
    exec("def graph(model, x): return torch.jit.trace(model, x).graph", made)

    def forward(model, x):
        made["graph"](model, x)
        return model(x)

    traced = run(spec(audited=frozenset({0, 1})), lambda: train(forward=forward))
    plain = run(spec(audited=frozenset({0, 1})), train)
    assert traced.status == "stopped", traced.error
    assert traced.losses == plain.losses
    assert [(op.op, op.calls) for op in traced.trace.ops] == [(op.op, op.calls) for op in plain.trace.ops]
