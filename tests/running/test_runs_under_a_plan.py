"""What a plan, a loss scale, a trace or another start makes of a run, and what it leaves as it is."""

from contextlib import ExitStack

import pytest
import torch
from small_runs import BRAIN, plainly, spec, train, training
from torch import nn
from torch.utils.checkpoint import checkpoint

from precaudit.execution.apply import apply
from precaudit.model import LossScale, Plan
from precaudit.ownprecision.records import Scaler
from precaudit.running.worker import run


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


def test_own_mixed_precision_is_off_by_default():
    neutral, written = run(spec(), autocasting), run(spec(precision="as-written", label="as-written"), autocasting)
    assert neutral.losses == run(spec(), plainly).losses
    assert neutral.own_precision.autocast == "bfloat16"
    assert neutral.own_precision.grad_scaler == Scaler(64.0, 10, used=True)
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
