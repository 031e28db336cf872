"""What a run tells of its models' answers and values at its end."""

from dataclasses import replace

import pytest
import torch
from small_runs import BRAIN, spec, training
from torch import nn

from precaudit.model import Plan
from precaudit.running.worker import run


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
