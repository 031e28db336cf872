"""One run in this process: what a script's code can do to it, and what comes of each kind of run."""

import os
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from weakref import ref

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.modules import module as torch_modules
from torch.utils.checkpoint import checkpoint

from precaudit.errors import PrecauditError
from precaudit.execution.apply import apply
from precaudit.execution.loss_scaling import LossScaler
from precaudit.instrument.events import TrainingEvents
from precaudit.model import LossScale, Plan
from precaudit.ownprecision.records import Scaler
from precaudit.running import endstate
from precaudit.running.job import INTERNAL, Job, RunResult, RunSpec
from precaudit.running.worker import run

JOB = Job("script", "train.py", (), os.getcwd(), 6)
BRAIN = Plan("bfloat16", {"": "bfloat16", "0": "bfloat16", "1": "bfloat16", "2": "bfloat16"})


def spec(**fields):
    return RunSpec(JOB, fields.pop("label", "reference"), **fields)


def train(steps=100, before_step=lambda step: None, forward=lambda model, x: model(x)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        before_step(step)
        optimizer.zero_grad()
        forward(model, torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def training(make, loss, lr=0.0):
    """A script that trains what `make` returns by SGD until it is stopped."""

    def code():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        while True:
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

    return code


def raises(error, at=3):
    def before_step(step):
        if step == at:
            raise error

    return lambda: train(before_step=before_step)


# ---------------------------------------------------------------- how a run ends


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
    monkeypatch.setattr(endstate, "_samples", lambda own: {}["missing"])
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


# ---------------------------------------------------------------- kinds of runs


def test_runs_of_a_seed_repeat_and_seeds_differ():
    assert run(spec(), train).losses == run(spec(), train).losses
    assert run(spec(seed=1), train).losses == run(spec(seed=1), train).losses
    assert run(spec(seed=1), train).losses != run(spec(), train).losses


@pytest.mark.parametrize("name", ["bfloat16", "float16", "tf32"])
def test_a_plan_changes_the_losses_a_little(name):
    reference = run(spec(), train).losses
    plan = Plan(name, dict.fromkeys(BRAIN.modules, name))
    losses = run(spec(label="candidate-1", plan=plan, precision="plan"), train).losses
    assert losses != reference
    assert losses == pytest.approx(reference, rel=0.05)


def test_a_plan_of_float32_changes_nothing():
    plan = Plan("float32", dict.fromkeys(BRAIN.modules, "float32"))
    assert run(spec(plan=plan), train).losses == run(spec(), train).losses


def test_a_loss_scale_changes_nothing_but_is_told():
    reference = run(spec(), train)
    scaled = Plan("float32", loss_scale=LossScale("dynamic", 2.0**8, 3))
    result = run(spec(plan=scaled), train)
    assert result.losses == reference.losses
    assert result.scales == (256.0, 256.0, 512.0, 512.0, 512.0, 1024.0)
    assert result.skipped == ()
    assert reference.scales == ()


def test_overflow_skips_the_step_and_halves_the_scale():
    plan = Plan("float16", dict.fromkeys(BRAIN.modules, "float16"), loss_scale=LossScale("dynamic", 2.0**20, 2000))
    result = run(spec(plan=plan), train)
    assert result.skipped[:2] == (0, 1)
    assert result.scales[0] == 2.0**19
    assert result.end_state.parameters == ()


def test_tracing_changes_no_loss():
    traced = spec(audited=frozenset({0, 1, 5}), shadowed=frozenset({0}), formats=("bfloat16", "float16"))
    result = run(traced, train)
    assert result.losses == run(spec(), train).losses
    assert result.trace.audited_steps == 3
    assert [layer.fqn for layer in result.trace.layers] == ["0", "1", "2"]
    assert result.trace.ops[0].local_error["bfloat16"] > 0
    assert run(spec(), train).trace is None


def test_the_first_layer_to_overflow_is_watched():
    plan = Plan("float16", dict.fromkeys(BRAIN.modules, "float16"))

    def large():
        train(forward=lambda model, x: model(x * 1e6))

    result = run(spec(plan=plan, watch_from=0), large)
    fault = result.trace.faults[0]
    assert (fault.fqn, fault.op, fault.step, fault.phase) == ("0", "linear", 0, "forward")


class Sharpened(nn.Module):
    def forward(self, x):
        return x if self.training else x * 1e6


def test_an_overflow_in_eval_mode_is_watched_too():
    plan = Plan("float16", {**dict.fromkeys(BRAIN.modules, "float16"), "3": "float16"})

    def sharpened():
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), Sharpened())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (model(torch.ones(8, 4)) - 1).square().mean().backward()
            optimizer.step()

    result = run(spec(plan=plan, watch_from=0), sharpened)
    (fault,) = result.trace.faults
    assert (fault.fqn, fault.op, fault.phase) == ("3", "mul", "forward")


def test_rounded_initial_weights_change_the_losses_slightly():
    def distance(name):
        losses = run(spec(perturbed=name), train).losses
        return max(abs(a - b) / a for a, b in zip(reference, losses, strict=True))

    reference = run(spec(), train).losses
    assert distance("float32") == 0
    assert 0 < distance("tf32") < distance("bfloat16") < 0.02


def test_jittered_start_differs_between_seeds():
    results = {run(spec(seed=seed, jitter=True), train).losses for seed in (1, 2)}
    assert len(results | {run(spec(seed=1), train).losses}) == 3


def autocasting():
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(8, 4)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def plainly():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def test_own_mixed_precision_is_off_by_default():
    neutral, written = run(spec(), autocasting), run(spec(precision="as-written", label="as-written"), autocasting)
    assert neutral.losses == run(spec(), plainly).losses
    assert neutral.own_precision.autocast == "bfloat16"
    assert neutral.own_precision.grad_scaler == Scaler(64.0, 10)
    assert written.losses != neutral.losses


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    ("regions", "disabled"),
    [([True], False), ([False], False), ([True, False], True), ([False, False], True), ([True, False, True], True)],
)
def test_a_plan_runs_inside_autocast_switched_off_or_on_and_not_inside_a_disabled_region(regions, disabled):
    """`autocast(enabled=args.amp)` around a training step says nothing of the plan where there is no `--amp`."""

    def code():
        def forward(model, x):
            with ExitStack() as stack:
                for enabled in regions:
                    stack.enter_context(torch.autocast("cuda", enabled=enabled))
                return model(x).float()

        train(forward=forward)

    assert (run(spec(plan=BRAIN), code).losses == run(spec(), code).losses) is disabled


def test_a_native_plan_goes_on_with_the_weights_of_each_step():
    """torch's autocast keeps what it has cast until an outermost region ends."""

    def make():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    code = training(make, lambda model: (model(torch.ones(3, 4)) - 1).square().mean(), lr=0.05)
    ways = ("native", "emulated")
    native, emulated = (run(spec(precision="plan", plan=BRAIN, execution=way), code).losses for way in ways)
    assert native == pytest.approx(emulated, rel=1e-2)
    assert native[-1] < 0.5 * native[0]


class Without(nn.Module):
    """Calls a network that is no part of it, as losses hold teachers and critics."""

    def __init__(self, network):
        super().__init__()
        self.networks = [network]

    def forward(self, x):
        return self.networks[0](x).sum() + (x @ x.T).sum()


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_plan_is_in_force_in_a_model_that_a_loss_calls(execution):
    """A plan was verified of which that model had been left out, and precaudit.apply puts it on."""
    seen = []

    def code():
        network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        network[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        loss, optimizer = Without(network), torch.optim.SGD(network.parameters(), lr=0.01)
        loss.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        network[2].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        x = torch.ones(3, 4)
        loss(x).backward()
        optimizer.step()

    result = run(spec(precision="plan", plan=BRAIN, execution=execution), code)
    assert seen[:3] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert "network" in result.end_state.evaluations


class Core(nn.Module):
    """Attention's products, which have no weights."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant

    def attend(self, q, k):
        return (q @ k.T).softmax(-1) @ k

    def forward(self, x):
        return checkpoint(self.attend, x, x + 1, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_what_a_part_without_weights_checkpoints_is_repeated_under_the_plan(execution, use_reentrant):
    def gradient(core):
        found = []

        def code():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), core, nn.Linear(8, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.randn(5, 4)).sum().backward()
            found.append(model[0].weight.grad.clone())
            optimizer.step()

        assert run(spec(precision="plan", plan=BRAIN, execution=execution), code).error is None
        return found[0]

    class Plain(Core):
        def forward(self, x):
            return self.attend(x, x + 1)

    assert torch.equal(gradient(Core(use_reentrant)), gradient(Plain(False)))


@pytest.mark.parametrize("execution", ["emulated", "native", "applied, emulated", "applied, native"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_disabled_region_inside_a_model_is_what_torch_makes_of_it(execution, checkpointed):
    """What comes in is not cast, neither up nor down; in the backward pass again."""
    seen = []

    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

        def in_float32(self, h):
            wide = h.float()
            seen.append([t.dtype for t in (h.relu(), h @ h.t(), wide @ wide.t(), self.inner(wide))])
            return self.inner(wide)

        def forward(self, x):
            h = self.lin(x)
            with torch.autocast("cpu", enabled=False):
                wide = checkpoint(self.in_float32, h, use_reentrant=False) if checkpointed else self.in_float32(h)
            seen.append([(h @ h.t()).dtype])
            return h + wide

    half, full = torch.bfloat16, torch.float32
    plan = Plan("bfloat16", {"": "bfloat16", "lin": "bfloat16", "inner": "float16"})

    def code():
        model = Careful()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    def applied():
        model = Careful()
        with apply(model, plan, execution=execution.split()[-1]):
            model(torch.ones(2, 4)).sum().backward()

    if execution.startswith("applied"):
        applied()
    else:
        run(spec(plan=plan, execution=execution), code)
    inside = [half, half, full, full]
    expected = [inside, [half], inside] if checkpointed else [inside, [half]]
    assert seen[: len(expected)] == expected


# ---------------------------------------------------------------- what counts as a step and a loss


def test_first_loss_of_a_closure_is_the_step_s():
    first = []

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        while True:
            evaluations = []

            def closure(evaluations=evaluations):
                optimizer.zero_grad()
                loss = model(torch.ones(3, 4)).square().mean()
                loss.backward()
                evaluations.append(loss.item())
                return loss

            try:
                optimizer.step(closure)
            finally:
                first.append(evaluations[0])

    result = run(spec(), code)
    assert result.losses == pytest.approx(first)
    assert result.steps == 6 < result.backward_calls


def test_micro_batches_are_averaged():
    losses = []

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            for _ in range(3):
                loss = model(torch.randn(3, 4)).square().mean()
                loss.backward()
                losses.append(loss.item())
            optimizer.step()

    result = run(spec(), code)
    assert result.backward_calls == 18
    assert result.losses == pytest.approx([sum(losses[i : i + 3]) / 3 for i in range(0, 18, 3)], rel=1e-6)


def test_a_script_that_waits_for_a_better_batch_for_ever_is_stopped_under_a_plan():
    """It leaves out every batch whose loss isn't finite, and in this format none is."""

    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
        for _ in range(1100):
            model(torch.ones(3, 4))

    reference = run(spec(), code)
    assert (reference.status, reference.calls) == ("ended", (1, 1, 1, 1100))
    result = run(spec(precision="plan", plan=Plan("bfloat16", {"": "bfloat16"}), patience=1000), code)
    assert (result.status, result.calls) == ("stopped", (1, 1, 1, 1001))


@pytest.mark.parametrize(("calls", "patience"), [((), 1000), ((1, 2), 1000), ((1500,), 75_000)])
def test_a_script_may_call_its_models_as_often_as_float32_does(calls, patience):
    """An agent calls its policy once for each step of its surroundings, thousands of times for one of training."""
    assert RunResult("reference", 0, "ended", calls=calls).patience == patience


def test_losses_of_one_line_are_told_apart_by_their_optimizers():
    """A function that makes a step, or a library's: what a discriminator loses its generator would gain."""

    def code():
        model = nn.Linear(4, 1)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
        while True:
            for sign, optimizer in zip((1, -1), optimizers, strict=True):
                (sign * model(torch.randn(3, 4)).square().mean()).backward()
                optimizer.step()

    def anew():
        model, kept = nn.Linear(4, 1), []
        while True:
            kept.append(torch.optim.SGD(model.parameters(), lr=0.1))
            model(torch.randn(3, 4)).square().mean().backward()
            kept[-1].step()

    result = run(spec(), code)
    assert result.turns == (1, 2, 1, 2, 1, 2)
    (first, positive), (second, negative) = result.streams.items()
    assert first.endswith("optimizer 1")
    assert second.endswith("optimizer 2")
    assert (min(positive) > 0, max(negative) < 0, len(positive), len(negative)) == (True, True, 3, 3)
    single = run(spec(), anew)
    assert [len(losses) for losses in single.streams.values()] == [6]
    assert single.turns == ()


@pytest.mark.parametrize("neutralize", [False, True])
def test_casts_of_a_thread_that_trains_are_seen_and_switched_off(neutralize):
    """A function mode is on in one thread: the float32 reference of such a script was in half precision."""
    seen = []

    def code():
        thread = threading.Thread(target=train, kwargs={"steps": 3, "forward": half})
        thread.start()
        thread.join()

    def half(model, x):
        seen.append(x.half().dtype)
        return model(x)

    result = run(spec(audited=frozenset({0}), neutralize=neutralize), code)
    assert set(seen) == {torch.float32 if neutralize else torch.float16}
    assert bool(result.own_precision.casts) is not neutralize


@pytest.mark.parametrize("scaled", [lambda x: x, lambda x: x * 2.0**12, lambda x: torch.tensor(2.0**12) * x])
def test_a_loss_scale_that_the_script_keeps_is_no_part_of_the_loss(scaled):
    """As it halves where gradients overflow, losses of two precisions would seem far apart."""

    code = training(lambda: nn.Linear(4, 1), lambda model: scaled(((model(torch.ones(3, 4)) - 3) ** 2).mean()))
    result = run(spec(), code)
    assert 1 < result.losses[0] < 100
    assert result.streams.popitem()[1] == result.losses


def test_calls_that_led_to_each_step_are_counted():
    """Not those without gradients, nor those of a closure, which may search for its step."""

    def code():
        model = nn.Sequential(nn.Linear(4, 1))
        optimizer = torch.optim.LBFGS(model.parameters())
        for step in range(6):
            for _ in range(1 + step % 3):
                loss = model(torch.randn(3, 4)).square().mean()
            with torch.no_grad():
                model(torch.ones(3, 4))
            loss.backward(retain_graph=True)
            optimizer.step(lambda: model(torch.ones(3, 4)).square().mean())

    assert run(spec(), code).calls == (1, 2, 3, 1, 2, 3)


def test_losses_of_different_lines_are_told_apart():
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            (-model(torch.randn(3, 4)).square().mean()).backward()
            optimizer.step()

    streams = run(spec(), code).streams
    assert [len(losses) for losses in streams.values()] == [3, 3]
    positive, negative = streams.values()
    assert all(loss > 0 for loss in positive)
    assert all(loss < 0 for loss in negative)


def test_without_an_optimizer_backward_passes_are_steps():
    def code():
        weight = torch.ones(3, requires_grad=True)
        model = nn.Linear(3, 1)
        while True:
            model(weight[None]).sum().backward()

    result = run(spec(), code)
    assert (result.steps, result.counted) == (6, "backward calls")


# ---------------------------------------------------------------- the end


def test_nonfinite_state_is_named():
    def code():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
        model[1].running_var[0] = float("inf")
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
        optimizer.state[model[0].bias]["exp_avg"][0] = float("inf")

    end = run(spec(), code).end_state
    assert end.parameters == ("0.weight",)
    assert end.buffers == ("1.running_var",)
    assert end.optimizer_state == ("Adam.exp_avg",)
    assert next(iter(end.evaluations.values()))[0] is False


def test_models_answer_their_last_batch_in_eval_mode():
    models = []

    def make():
        models.append(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.Linear(4, 1)))
        return models[0]

    code = training(make, lambda model: model(torch.ones(2, 4)).sum(), lr=0.1)
    end = run(spec(), code).end_state
    expected = models[0].eval()(torch.ones(2, 4))
    assert end.evaluations["model"] == (True, pytest.approx(expected.square().mean().sqrt().item()))


class Whitened(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        return out if self.training else out * torch.linalg.svd(out)[1].sum()


def test_a_model_that_raises_in_eval_mode_alone_is_told_with_its_module_and_operation():
    def make():
        return nn.Sequential(nn.Linear(4, 4), Whitened(4, 4))

    code = training(make, lambda model: model(torch.randn(2, 4)).sum(), lr=0.1)
    assert list(run(spec(), code).end_state.evaluations) == ["model"]
    plan = Plan("bfloat16", {"": "bfloat16", "0": "bfloat16", "1": "bfloat16"})
    end = run(spec(plan=plan), code).end_state
    assert end.evaluations == {}
    assert (end.refused["model"].raised_in, end.refused["model"].op) == ("model:1", "linalg_svd")


class Recurrent(nn.Linear):
    """A sum in one product while it trains, one by one in eval mode."""

    def forward(self, x):
        out = super().forward(x).sigmoid()
        if self.training:
            return out.float().sum(0)
        total = torch.zeros_like(out[0])
        for row in out:
            total = total + row
        return total


@pytest.mark.parametrize("name", ["0", "1"])
def test_what_a_plan_makes_of_a_model_in_eval_mode_alone(name):
    def make():
        return nn.Sequential(nn.Linear(4, 4), Recurrent(4, 4))

    code = training(make, lambda model: model(torch.randn(4096, 4)).sum())
    plan = Plan("bfloat16", {"": "bfloat16", "0": "bfloat16", "1": "bfloat16"})
    plan = replace(plan, modules={**plan.modules, name: "float32"})
    result = run(spec(plan=plan, precision="plan"), code)
    far = result.end_state.deviations["model"]
    assert (far.is_fault(plan), far.causes) == ((True, ("1",)) if name == "0" else (False, ()))
    assert run(spec(), code).end_state.deviations == {}


@pytest.mark.parametrize(
    ("kinds", "causes"), [((nn.Linear,), {""}), ((nn.Linear, Recurrent), {"", "parts.1"})]
)
def test_outputs_lost_by_the_model_and_its_parts(kinds, causes):
    class Model(Recurrent):
        def __init__(self):
            super().__init__(4, 4)
            self.parts = nn.ModuleList(kind(4, 4) for kind in kinds)

        def forward(self, x):
            return torch.cat([super().forward(x), *(part(x) for part in self.parts[1:])])

    code = training(Model, lambda model: model(torch.randn(4096, 4)).sum())
    plan = Plan("bfloat16", dict.fromkeys(["", "parts.0", "parts.1"], "bfloat16"))
    far = run(spec(plan=plan, precision="plan"), code).end_state.deviations["model"]
    assert (far.is_fault(plan), set(far.causes)) == (True, causes)


def test_small_lost_output_beside_a_large_one_is_reported():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.Linear(4, 4), Recurrent(4, 4)

        def forward(self, x):
            return {"main": 1e6 * self.main(x), "side": self.side(x)}

    code = training(Model, lambda model: sum(each.sum() for each in model(torch.randn(4096, 4)).values()))
    plan = Plan("bfloat16", dict.fromkeys(["", "main", "side"], "bfloat16"))
    far = run(spec(plan=plan, precision="plan"), code).end_state.deviations["model"]
    assert (far.is_fault(plan), far.causes) == (True, ("side",))


def test_single_changed_choice_between_near_ties_is_no_fault():
    """A one-hot output in which one of many samples is another one, as float32's own rounding would have it elsewhere;
    two are too many, where that never has it."""

    class Chooses(nn.Linear):
        others = 1

        def forward(self, x):
            scores = super().forward(x)
            best = scores.argmax(1)
            if scores.dtype == torch.bfloat16:
                best[: self.others] = (best[: self.others] + 1) % 4
            return torch.zeros_like(scores).scatter(1, best[:, None], 1.0), scores.float().sum()

    def make():
        model = Chooses(4, 4)
        nn.init.zeros_(model.weight)
        return model

    code = training(make, lambda model: model(torch.randn(64, 4))[1])
    assert not run(spec(plan=BRAIN, precision="plan"), code).end_state.deviations["model"].is_fault(BRAIN)
    Chooses.others = 2
    assert run(spec(plan=BRAIN, precision="plan"), code).end_state.deviations["model"].is_fault(BRAIN)


class CarriesOn(nn.Linear):
    """Begins with nothing in its first call in eval mode, and with its own answer in all later ones."""

    state = 0.0

    def forward(self, x):
        out = super().forward(x).float() + self.state
        if not self.training:
            self.state = 1.0
        return out


class DrawsInPieces(nn.Linear):
    """As dropout on a GPU does, which draws other numbers for a half tensor than for a float32 one."""

    def forward(self, x):
        out = super().forward(x)
        torch.rand(2 if out.dtype == torch.bfloat16 else 4)
        return out * (torch.rand(out.shape) > 0.5)


@pytest.mark.parametrize("kind", [CarriesOn, DrawsInPieces])
def test_carried_state_and_random_numbers_are_not_blamed_on_the_plan(kind):
    code = training(lambda: kind(4, 4), lambda model: model(torch.ones(64, 4)).sum())
    assert not run(spec(plan=BRAIN, precision="plan"), code).end_state.deviations["model"].is_fault(BRAIN)


def test_probes_leave_the_weights_unchanged():
    models = []

    def make():
        model = nn.Linear(4, 4)
        models.append((model, model.weight.detach().clone()))
        return model

    code = training(make, lambda model: model(torch.ones(2, 4)).sum())
    assert 0 < run(spec(plan=BRAIN, precision="plan"), code).end_state.deviations["model"].chance < 0.01
    assert torch.equal(models[0][0].weight, models[0][1])


# ---------------------------------------------------------------- gradient probes


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_probes_measure_gradients_and_stay_on_the_float32_path(name, tmp_path):
    saving = spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2, 3}))
    reference = run(saving, train)
    scale = LossScale("static", 2.0**6) if name == "float16" else LossScale()
    plan = Plan(name, dict.fromkeys(BRAIN.modules, name), loss_scale=scale)
    probing = spec(label="replay", probe_dir=str(tmp_path), probe_compare={2: ("a", plan), 3: ("a", plan)})
    replay = run(probing, train)
    assert [replay.losses[i] for i in (0, 1, 4, 5)] == [reference.losses[i] for i in (0, 1, 4, 5)]
    assert [replay.losses[i] for i in (2, 3)] != [reference.losses[i] for i in (2, 3)]
    assert {d.fqn for d in replay.differences} == {"model.0", "model.2"}
    for difference in replay.differences:
        assert difference.evaluations == 2
        assert 0 < difference.delta < 1e-3 * difference.gradient
        assert difference.noise > 0
        assert difference.bias <= difference.delta * 1.01


def test_probes_of_float32_find_no_difference(tmp_path):
    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), train)
    plan = Plan("float32", dict.fromkeys(BRAIN.modules, "float32"))
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", plan)}), train)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_probes_leave_what_the_script_keeps_out_of_autocast(tmp_path):
    def forward(model, x):
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            return model(x)

    def code():
        train(forward=forward)

    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", BRAIN)}), code)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_probes_through_reentrant_checkpoints_are_unscaled(tmp_path):
    def code():
        train(forward=lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=True))

    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
    plan = Plan("float32", loss_scale=LossScale("static", 2.0**6))
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", plan)}), code)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_products_where_the_script_switched_autocast_off_count_as_no_products():
    class PartlyDisabled(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return x @ self.lin.weight + self.lin(x)

    model = PartlyDisabled()
    result = run(spec(audited=frozenset({0})), lambda: train(forward=lambda other, x: other(model(x))))
    ops = {(op.fqn, op.op): (op.category, op.half) for op in result.trace.ops if op.op in ("linear", "matmul")}
    inside = [kind for (fqn, op), kind in ops.items() if op == "matmul" or fqn.endswith("lin")]
    assert inside == [("other", False)] * 2
    assert ("lower", True) in ops.values()


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


def test_gradients_of_sharded_parameters_are_compared(tmp_path):
    def make():
        return fully_shard(nn.Linear(4, 4), mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))

    code = training(make, lambda model: model(torch.randn(8, 4)).square().mean(), lr=0.1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
        replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", BRAIN)}), code)
    finally:
        torch.distributed.destroy_process_group()
    assert replay.losses[:2] == plain.losses[:2]
    assert replay.losses[3:] == plain.losses[3:]
    assert {difference.label for difference in replay.differences} == {"a"}


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
