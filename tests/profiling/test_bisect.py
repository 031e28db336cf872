"""Which modules the search for a gradient's error ends at, on a runner that knows each module's share."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from precaudit.execution.apply import apply
from precaudit.model import Op, Plan
from precaudit.profiling.bisect import Search, contributions, culprit, of_gradients, of_losses, whole_error
from precaudit.profiling.culprits import culprit_of
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.tracing.records import GradientDifference, Trace

NAMES = tuple("abcdefgh")
PLAN = Plan("float16", dict.fromkeys(NAMES, "float16"))
SPEC = RunSpec(Job("script", "train.py", (), ".", 20), "replay", probe_save=frozenset(range(4)))


class Each:
    """Makes runs one by one."""

    def many(self, specs):
        return [self(spec) for spec in specs]


class Known(Each):
    """Answers probes with `error(low)`, the energy that the plan's low modules put into a gradient of energy 1, times
    what is peculiar to the step's batch."""

    def __init__(self, error, size=lambda step: 1.0):
        self.error, self.size, self.asked = error, size, []

    def __call__(self, spec):
        self.asked.append(spec)
        differences = []
        for step, (label, plan) in spec.probe_compare.items():
            low = {fqn for fqn, name in plan.modules.items() if name != "float32"}
            error = self.error(low) * self.size(step)
            differences.append(GradientDifference(label, "", 1, error, 1.0, 1.0, 0.0, 1.0))
        return RunResult("bisect", 0, "stopped", differences=tuple(differences))


@pytest.mark.parametrize("culprit", NAMES)
def test_one_module_that_causes_the_error_alone_is_named(culprit):
    found = contributions(Search(SPEC, PLAN, Known(lambda low: 0.04 * (culprit in low) + 1e-6 * len(low))))
    assert [item.fqn for item in found] == [culprit]
    assert found[0].error == pytest.approx(0.04, rel=1e-3)


def together(low):
    """Rounding that hurts only where `c` computes in a low format with what `b` rounded."""
    return 0.04 * ({"b", "c"} <= low) + 1e-6 * len(low)


def test_only_the_guilty_module_of_a_pair_is_named():
    """A wide `b` helps as much: what it hands on is wide, and `c` follows that."""
    (found,) = contributions(Search(SPEC, PLAN, Known(together)))
    assert found.fqn == "c"
    assert found.error == pytest.approx(0.04, rel=1e-2)


@pytest.mark.parametrize(("products", "named"), [("abdefgh", "c"), ("acdefgh", "b")])
def test_of_two_explanations_the_module_without_products_is_named(products, named):
    assert [item.fqn for item in contributions(Search(SPEC, PLAN, Known(together)), set(products))] == [named]


def test_explanations_within_a_twentieth_are_equally_good():
    """97% of the error goes with `c`, and 99.5% with `b`."""
    known = Known(lambda low: together(low) + 0.0013 * ("b" in low) + 0.0002 * ("c" in low))
    assert [item.fqn for item in contributions(Search(SPEC, PLAN, known), set("abdefgh"))] == ["c"]


class Chunks(nn.Module):
    """A container that computes nothing, so that no plan lists it: it hands on what its layer rounds."""

    def __init__(self):
        super().__init__()
        self.layer, self.narrow = nn.Linear(4, 8), Narrow()

    def forward(self, x):
        return self.narrow(*self.layer(x).chunk(2, dim=1))


class Narrow(nn.Module):
    """The mass of a logistic distribution in a narrow interval: a difference that half precision loses."""

    def forward(self, mean, at):
        off = at - mean
        return -torch.log(torch.sigmoid(off + 0.004) - torch.sigmoid(off - 0.004) + 1e-3).mean()


class Real(Each):
    """Answers probes with the gradients of a model under the plans, emulated."""

    def __init__(self, model):
        self.model, self.x = model, torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def gradient(self):
        self.model.zero_grad()
        self.model(self.x).backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])

    def __call__(self, spec):
        exact, differences = self.gradient(), []
        for label, plan in spec.probe_compare.values():
            with apply(self.model, plan, execution="emulated"):
                delta = float((self.gradient() - exact).square().sum())
            differences.append(GradientDifference(label, "", 1, delta, float(exact.square().sum()), 1.0, 0.0, 1.0))
        return RunResult("bisect", 0, "stopped", differences=tuple(differences))


def test_a_container_that_no_plan_lists_hands_on_half_results():
    torch.manual_seed(0)
    plan = Plan("bfloat16", {"layer": "bfloat16", "narrow": "bfloat16"})
    (found,) = contributions(Search(SPEC, plan, Real(Chunks())), {"layer"})
    assert found.fqn == "narrow"
    assert found.error > 0.01


@pytest.mark.parametrize("culprit", NAMES[1:])
def test_a_container_is_not_named_for_its_child(culprit):
    plan = replace(PLAN, modules={"": "float16", **PLAN.modules})
    found = contributions(Search(SPEC, plan, Known(lambda low: 0.04 * ({"", culprit} <= low) + 1e-6 * len(low))))
    assert [item.fqn for item in found] == [culprit]


def test_products_beside_the_guilty_module_do_not_hide_it():
    """The half of the modules that has their container has fewer products, and mends it as well."""
    plan = replace(PLAN, modules={"": "float16", **PLAN.modules})
    known = Known(lambda low: 0.04 * ({"", "g"} <= low) + 1e-6 * len(low))
    assert [item.fqn for item in contributions(Search(SPEC, plan, known), {"a", "f", "h"})] == ["g"]


def test_two_modules_that_cause_errors_are_both_named():
    known = Known(lambda low: 0.03 * ("b" in low) + 0.02 * ("g" in low) + 1e-6 * len(low))
    assert [item.fqn for item in contributions(Search(SPEC, PLAN, known), set(NAMES))] == ["b", "g"]


@pytest.mark.parametrize(("own", "named"), [(0.6, ["a"]), (0.3, ["b", "a"])])
def test_errors_of_single_modules_suffice_where_they_explain_half(own, named):
    known = Known(lambda low: own * ("a" in low) + (1 - own) * ({"b", "c"} <= low))
    assert [item.fqn for item in contributions(Search(SPEC, PLAN, known))] == named


def test_different_batches_name_no_other_module():
    """Each step's error has a size of its own, and no module alone makes half of the whole."""
    known = Known(together, size=lambda step: 10.0**-step)
    assert {item.fqn for item in contributions(Search(SPEC, PLAN, known))} < {"b", "c"}


@pytest.mark.parametrize("culprit", NAMES)
def test_a_module_that_few_batches_reach_is_named_too(culprit):
    """A branch for another kind of batch; the others' own error is all rounding by all modules alike."""

    class Branch(Known):
        def __call__(self, spec):
            found = super().__call__(spec).differences
            lows = [{m for m, f in plan.modules.items() if f != "float32"} for _, plan in spec.probe_compare.values()]
            reached = [step in (4, 5) and culprit in low for step, low in zip(spec.probe_compare, lows, strict=True)]
            errors = [replace(d, delta=d.delta + 0.04 * on) for d, on in zip(found, reached, strict=True)]
            return RunResult("bisect", 0, "stopped", differences=tuple(errors))

    spec = replace(SPEC, probe_save=frozenset(range(16)))
    assert [item.fqn for item in contributions(Search(spec, PLAN, Branch(lambda low: 1e-6 * len(low))))] == [culprit]


def test_no_replay_is_made_twice_nor_goes_on_after_its_probes():
    known = Known(lambda low: 0.04 * ("c" in low) + 1e-6 * len(low))
    search = Search(SPEC, PLAN, known)
    assert whole_error(search, of_gradients) == pytest.approx(0.04, rel=1e-3)
    found = contributions(search)
    made = len(known.asked)
    assert contributions(search) == found
    assert [spec.probe_compare for spec in known.asked].count(known.asked[0].probe_compare) == 1
    assert len(known.asked) == made
    assert {spec.job.steps for spec in known.asked} == {4}, "of 20"


def test_without_an_error_or_low_modules_no_module_is_named():
    assert contributions(Search(SPEC, PLAN, Known(lambda low: 0.0))) == []
    wide = replace(PLAN, modules=dict.fromkeys(NAMES, "float32"))
    assert contributions(Search(SPEC, wide, Known(lambda low: 1.0))) == []
    assert contributions(Search(replace(SPEC, probe_save=frozenset()), PLAN, Known(lambda low: 1.0))) == []


def answering(answer):
    """A runner that answers by a function."""
    return SimpleNamespace(many=lambda specs: list(map(answer, specs)))


def wide_operations(error):
    """A runner whose gradient's error depends on which operations of the plan are in float32."""

    def answer(spec):
        shares = {label: error({op.op for op in plan.ops}) for label, plan in spec.probe_compare.values()}
        differences = (GradientDifference(label, "", 1, share, 1.0, 1.0, 0.0, 1.0) for label, share in shares.items())
        return RunResult("bisect", 0, "stopped", differences=tuple(differences))

    return answering(answer)


OPERATIONS = ("linear", "matmul", "mul", "exp", "sub")


@pytest.mark.parametrize("named", OPERATIONS)
def test_the_operation_that_removes_the_error_is_named(named):
    run = wide_operations(lambda wide: 0.04 * (named not in wide) + 1e-3)
    assert culprit(Search(SPEC, PLAN, run), "c", OPERATIONS) == named


@pytest.mark.parametrize(
    ("ops", "errors", "named"),
    [
        (OPERATIONS, {}, "exp"),
        (OPERATIONS, {"mul": 0.3}, "mul"),
        (("linear",), {}, "linear"),
        (("relu",), {}, None),
    ],
    ids=["by measuring", "by its own error", "the only one", "none in low precision"],
)
def test_a_module_has_one_operation_to_blame_for_its_error(ops, errors, named):
    trace = Trace(
        ops=tuple(
            Op("c", op, 1, "other" if op == "relu" else "lower", None, (), local_error={"float16": errors.get(op, 0.0)})
            for op in ops
        )
    )
    runner = wide_operations(lambda wide: 0.04 * ("exp" not in wide) + 1e-3)
    found = culprit_of(trace, Search(SPEC, PLAN, runner), "c")
    assert (found and found.op) == named


def test_of_a_chain_of_operations_the_last_that_helps_is_named():
    """A wide matmul hands float32 on to the mul; what comes later is too late."""
    run = wide_operations(lambda wide: 0.04 * (not {"matmul", "mul"} & wide) + 1e-4)
    assert culprit(Search(SPEC, PLAN, run), "c", OPERATIONS) == "mul"


def test_no_operation_is_named_that_explains_less_than_half():
    run = wide_operations(lambda wide: 0.04 - 0.01 * ("mul" in wide))
    assert culprit(Search(SPEC, PLAN, run), "c", OPERATIONS) is None
    assert culprit(Search(replace(SPEC, probe_save=frozenset()), PLAN, run), "c", OPERATIONS) is None


EXACT = (12.0, 8.0, 5.0, 4.0)


def shifted(shift):
    """A runner whose losses are float32's but for what `shift(low)` adds to them, as a share."""

    def answer(spec):
        lows = {
            step: {m for m, f in plan.modules.items() if f != "float32"}
            for step, (_, plan) in spec.probe_compare.items()
        }
        losses = tuple(loss * (1 + shift(lows.get(step, set()))) for step, loss in enumerate(EXACT))
        return RunResult("bisect", 0, "stopped", losses=losses)

    return answering(answer)


def test_a_module_that_shifts_the_loss_is_named_where_gradients_show_nothing():
    run = shifted(lambda low: -0.03 * ("c" in low) + 0.001 * ("a" in low))
    assert whole_error(Search(SPEC, PLAN, run), of_losses(EXACT)) == pytest.approx(-0.029)
    (found,) = contributions(Search(SPEC, PLAN, run), measure=of_losses(EXACT))
    assert (found.fqn, found.error) == ("c", pytest.approx(-0.03))


def test_nonfinite_losses_count_and_missing_ones_do_not():
    run = shifted(lambda low: float("nan") if "f" in low else 0.0)
    assert [item.fqn for item in contributions(Search(SPEC, PLAN, run), measure=of_losses(EXACT))] == ["f"]
    assert whole_error(Search(SPEC, PLAN, run), of_losses(EXACT[:1])) == 0.0
