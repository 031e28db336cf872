"""Coverage: modules added, removed, renamed, moved, replaced, of another model; each named in its sentence."""

from dataclasses import replace

import pytest

from precaudit.checking.coverage import coverage
from precaudit.checking.models import the_planned, view_models
from precaudit.checking.records import ModuleFacts, Observed
from precaudit.model import Layer, Location, Op, OpFormat, Plan
from precaudit.tracing.records import Trace

MODEL = {"embed": "Embedding", "block.fc1": "Linear", "block.act": "GELU", "block.fc2": "Linear", "norm": "LayerNorm"}


def facts(types, model="model", containers=("", "block")):
    leaves = [ModuleFacts(model, fqn, kind, True, kind not in ("GELU", "Dropout")) for fqn, kind in types.items()]
    return [*(ModuleFacts(model, fqn, "Sequential", False, False) for fqn in containers), *leaves]


def plan_of(types, prefix="", typed=True):
    names = {f"{prefix}{fqn}": kind for fqn, kind in types.items()}
    return Plan("bfloat16", dict.fromkeys(names, "bfloat16"), types=names if typed else {})


def answered(plan, modules, trace=None):
    observed, trace = Observed(modules=tuple(modules)), trace or Trace(models=("model",))
    return coverage(the_planned(view_models(plan, observed, trace), trace), plan, trace, "in 8 optimizer steps")


def found(plan, modules, trace=None):
    return {finding.rule: finding for finding in answered(plan, modules, trace).findings}


def without(name):
    return {fqn: kind for fqn, kind in MODEL.items() if fqn != name}


def renamed(**names):
    return {names.get(fqn.replace(".", "_"), fqn): kind for fqn, kind in MODEL.items()}


@pytest.mark.parametrize("typed", [True, False])
def test_the_same_model_is_covered(typed):
    answer = answered(plan_of(MODEL, typed=typed), facts(MODEL))
    assert answer.status == "passed"
    assert "names 5 of 5 modules that compute, " in answer.detail


def test_a_single_module_computes():
    single = dict([next(iter(MODEL.items()))])
    assert "names 1 of 1 module that computes, " in answered(plan_of(single), facts(single)).detail


@pytest.mark.parametrize("name", MODEL)
@pytest.mark.parametrize("typed", [True, False])
def test_an_added_module_is_named_with_its_type(name, typed):
    findings = found(plan_of(without(name), typed=typed), facts(MODEL))
    assert set(findings) == {"PA702"}
    assert findings["PA702"].fqn == name
    assert f"{name} ({MODEL[name]}) is new" in findings["PA702"].message
    assert "run in bfloat16 unverified" in findings["PA702"].message


@pytest.mark.parametrize("name", MODEL)
def test_a_removed_module_is_named(name):
    findings = found(plan_of(MODEL), facts(without(name)))
    assert set(findings) == {"PA701"}
    assert findings["PA701"].severity == "error"
    assert f"names {name} ({MODEL[name]})" in findings["PA701"].message
    assert "precaudit profile" in findings["PA701"].suggestion


def test_a_renamed_module_is_matched_by_type_and_position():
    findings = found(plan_of(MODEL), facts(renamed(block_fc2="block.proj")))
    assert set(findings) == {"PA703"}
    message = "the plan's block.fc2 is gone and block.proj (Linear) stands in its place: renamed"
    assert findings["PA703"].message == message
    assert findings["PA703"].evidence["renamed"] == {"block.fc2": "block.proj"}


def test_without_types_position_decides_and_the_sentence_says_so():
    findings = found(plan_of(MODEL, typed=False), facts(renamed(block_fc2="block.proj")))
    assert "block.proj (Linear) stands in its place: renamed or replaced" in findings["PA703"].message


def test_position_tells_modules_of_one_type_apart():
    many = {f"layers.{i}": "Linear" for i in range(30)}
    other = {("layers.lost" if fqn == "layers.11" else fqn): kind for fqn, kind in many.items()}
    findings = found(plan_of(many), facts(other, containers=("",)))
    assert findings["PA703"].evidence["renamed"] == {"layers.11": "layers.lost"}


def test_modules_that_moved_together_are_one_finding():
    wrapped = {f"encoder.{fqn}": kind for fqn, kind in MODEL.items()}
    answer = answered(plan_of(MODEL), facts(wrapped, containers=("", "encoder")))
    [finding] = answer.findings
    assert finding.rule == "PA703"
    assert "5 modules moved from the top to encoder" in finding.message
    assert finding.evidence["renamed"]["block.fc1"] == "encoder.block.fc1"


def test_module_of_another_type_is_an_error():
    findings = found(plan_of(MODEL), facts(MODEL | {"norm": "HandWrittenNorm"}))
    assert set(findings) == {"PA705"}
    assert "was a LayerNorm when the plan was made and is a HandWrittenNorm now" in findings["PA705"].message


@pytest.mark.parametrize(
    ("planned", "now", "compiled"),
    [
        (MODEL, dict.fromkeys(MODEL, "RecursiveScriptModule"), True),
        (MODEL, {"": "GraphModule", **dict.fromkeys(MODEL, "Module"), "_guards_fn": "GuardsFn"}, True),
        ({**MODEL, "body": "GraphModule"}, {**MODEL, "body": "GraphModule", "norm": "HandWrittenNorm"}, False),
    ],
)
def test_a_compiled_model_is_to_be_checked_before_it_is_compiled(planned, now, compiled):
    """Of it no other plan could be made, as the advice to all others says."""
    findings = found(plan_of(planned), facts(now, containers=("block",)))
    assert findings
    for finding in findings.values():
        assert finding.suggestion.startswith("check the model as it is before torch.jit") is compiled
        assert ("precaudit profile" in finding.suggestion) is not compiled


@pytest.mark.parametrize("typed", [True, False])
def test_another_models_plan_is_one_finding(typed):
    other = {f"conv{i}": "Conv2d" for i in range(40)}
    answer = answered(plan_of(MODEL, typed=typed), facts(other, containers=("",)))
    [finding] = answer.findings
    assert (finding.rule, finding.severity) == ("PA704", "error")
    assert "of 5 modules that it names, none have a counterpart in this model" in finding.message


def test_a_plan_without_modules_covers_nothing():
    assert "names no module" in found(Plan("bfloat16"), facts(MODEL))["PA704"].message


def test_container_that_newly_computes_is_a_warning():
    trace = Trace(layers=(Layer("block", "Block", 0, 8, (), model="model", leaf=False),), models=("model",))
    findings = found(plan_of(MODEL), facts(MODEL), trace)
    assert findings["PA706"].severity == "warning"
    assert findings["PA706"].fqn == "block"


def test_planned_container_that_does_not_compute_is_no_finding():
    """It computes in training mode only, say: it exists."""
    assert not found(plan_of(MODEL | {"block": "Block"}), facts(MODEL))


@pytest.mark.parametrize(
    ("planned", "model", "passes"),
    [
        ({"0": "Linear", "1": "ReLU", "2": "Linear"}, "model", False),  # another model has such a layer too
        ({"0": "Linear", "1": "ReLU", "2": "Linear"}, "0", True),
        ({"actor": "Linear", "critic": "Linear"}, "critic", True),
        ({"": "Linear"}, "model", True),
        ({"head": "Linear"}, "model", True),
    ],
)
def test_model_without_submodules_is_matched_by_name(planned, model, passes):
    alone = [ModuleFacts(model, "", "Linear", True, True)]
    answer = answered(plan_of(planned), alone, Trace(models=(model,)))
    assert answer.status == ("passed" if passes else "failed")


def test_one_of_several_equal_models_is_an_error():
    """It may be the other one, whose formats are others, that is deployed."""
    first, second = plan_of(MODEL, "actor."), plan_of(MODEL, "critic.")
    both = {**first.modules, "actor.norm": "float32", **second.modules, "critic.embed": "float32"}
    plan = Plan("bfloat16", both, types={**first.types, **second.types})
    finding = found(plan, facts(MODEL))["PA710"]
    assert (finding.severity, finding.evidence["models"]) == ("error", ["actor", "critic"])
    named = replace(Trace(), models=("actor",))
    assert "PA710" not in found(plan, facts(MODEL, "actor"), named)
    assert "PA710" not in found(replace(plan, modules={**both, "critic.embed": "bfloat16"}), facts(MODEL))


def test_direct_call_of_forward_is_an_error():
    """Its inner modules are seen each by itself, and what it computes between them nowhere."""
    trace = Trace(models=("model",), bypassed={"": Location("train.py", 9)})
    finding = found(plan_of(MODEL), facts(MODEL), trace)["PA709"]
    assert (finding.severity, finding.location) == ("error", Location("train.py", 9))
    assert "operations and outputs were not checked" in finding.message
    assert "super().__call__" in finding.suggestion


def test_names_of_several_models_are_prefixed():
    plan = plan_of({f"{model}.{fqn}": kind for model in ("gen", "dis") for fqn, kind in MODEL.items()})
    trace = Trace(models=("gen", "dis"))
    assert not found(plan, [*facts(MODEL, "gen"), *facts(MODEL, "dis")], trace)
    findings = found(plan, [*facts(MODEL, "gen"), *facts(without("norm"), "dis")], trace)
    assert findings["PA701"].fqn == "dis.norm"
    assert "the model dis doesn't have" in findings["PA701"].message


def test_one_of_several_models_alone_is_found_by_its_modules():
    plan = plan_of(MODEL, "gen.")
    plan = Plan("bfloat16", {**plan.modules, "dis.conv": "bfloat16"}, types={**plan.types, "dis.conv": "Conv2d"})
    [finding] = answered(plan, facts(MODEL), Trace()).findings
    assert (finding.rule, finding.severity) == ("PA707", "note")
    assert "also covers dis" in finding.message


def test_untrained_copies_are_not_covered_by_the_plan():
    """An EMA copy runs under the plan too, but the plan is made for what trains."""
    assert not found(plan_of(MODEL), [*facts(MODEL), *facts({"other": "Linear"}, "ema")])


def test_exception_for_an_operation_that_does_not_run_is_reported():
    trace = Trace(models=("model",), ops=(Op("block", "add", 1, "other", None, ()),))
    plan = plan_of({**MODEL, "block": "Sequential"})

    def told(*exceptions):
        ops = tuple(OpFormat(fqn, op, "float32") for fqn, op in exceptions)
        return [
            (each.rule, each.severity, each.message)
            for each in answered(replace(plan, ops=ops), facts(MODEL), trace).findings
        ]

    assert told(("block", "add"), ("norm", "layer_norm")) == []  # nothing was traced in norm
    ((*_, renamed),) = told(("block", "mul"))
    assert renamed == (
        "the plan has mul of block in float32, and no such operation ran there in 8 optimizer steps, but add: "
        "this exception does nothing"
    )
    ((rule, severity, elsewhere),) = told(("attention", "softmax"))
    assert (rule, severity) == ("PA708", "warning")
    assert "softmax of attention in float32, and names no such module" in elsewhere


@pytest.mark.parametrize(("container", "rules"), [("block", []), ("blok", ["PA708"])])
def test_exception_of_an_unplanned_container_is_known(container, rules):
    plan = replace(plan_of(MODEL), ops=(OpFormat(container, "add", "float32"),))
    assert [finding.rule for finding in answered(plan, facts(MODEL)).findings] == rules
