"""The plan as it will run, its tolerance, and whether the target takes its formats."""

from dataclasses import replace

import pytest

from precaudit.checking.deployments import default_tolerance, deployments, formats_of, in_format
from precaudit.checking.records import CheckSettings, Deployment
from precaudit.checking.target import target
from precaudit.formats import FORMATS
from precaudit.hardware.peaks import get_gpu
from precaudit.model import OpFormat, Plan
from precaudit.model.fitting import format_of

PLAN = Plan(
    "bfloat16",
    {"a": "bfloat16", "b": "float32", "c": "float16", "d": "float16"},
    (OpFormat("a", "softmax", "float32"),),
    {"b": "overflows", "c": "needs precision"},
)


def test_the_plan_as_it_is():
    [deployment] = deployments(PLAN, CheckSettings())
    assert (deployment.plan, deployment.format) == (PLAN, "bfloat16")


def test_another_format_keeps_exceptions_with_a_reason():
    plan = in_format(PLAN, "float16")
    assert plan.default == "float16"
    assert plan.modules == {"a": "float16", "b": "float32", "c": "float16", "d": "float16"}
    assert in_format(PLAN, "float8_e4m3").modules["c"] == "float16"
    assert in_format(PLAN, "float8_e4m3").modules["d"] == "float8_e4m3"
    assert plan.ops == PLAN.ops


def test_deployment_is_named_after_a_format_in_use():
    plan = Plan("bfloat16", {"": "float16", "head": "float32"})
    assert [d.format for d in deployments(plan, CheckSettings())] == ["float16"]
    assert [d.format for d in deployments(replace(plan, default="float32"), CheckSettings())] == ["float32"]


def test_several_formats_are_several_deployments():
    assert [d.format for d in deployments(PLAN, CheckSettings(formats=("float16", "tf32")))] == ["float16", "tf32"]


@pytest.mark.parametrize("name", FORMATS)
def test_tolerance_is_sixteen_roundoffs_or_a_quarter(name):
    tolerance, why = default_tolerance(name)
    assert tolerance == min(0.25, 16 * 2.0 ** -(FORMATS[name].mantissa + 1))
    assert name in why or tolerance == 0.25


def test_tolerance_is_that_of_the_coarsest_format_in_use():
    assert formats_of(PLAN) == ("bfloat16", "float16", "float32")
    assert deployments(PLAN, CheckSettings())[0].tolerance == 16 * 2.0**-8
    assert deployments(PLAN, CheckSettings(tolerance=0.5))[0].tolerance == 0.5


def test_unused_default_is_not_among_the_formats():
    assert formats_of(Plan("bfloat16", {"a": "float32"})) == ("float32",)
    assert formats_of(Plan("bfloat16")) == ("bfloat16",)


@pytest.mark.parametrize(
    ("fqn", "op", "expected"),
    [
        ("a", None, "bfloat16"),
        ("a", "softmax", "float32"),
        ("a.inner", "softmax", "bfloat16"),
        ("b.inner.most", "linear", "float32"),
        ("unknown", None, "bfloat16"),
        ("", None, "bfloat16"),
    ],
)
def test_format_of_a_module_is_its_nearest_ancestors(fqn, op, expected):
    assert format_of(PLAN, fqn, op) == expected


def deployed(name):
    return Deployment(name, Plan(name, {"": name, "fc": name}), 1.0, "")


@pytest.mark.parametrize(
    ("gpu", "name", "rules"),
    [
        ("h100", "float8_e4m3", []),
        ("a100", "bfloat16", []),
        ("a100", "float8_e4m3", [("PA721", "error")]),
        ("t4", "bfloat16", [("PA721", "error")]),
        ("t4", "float16", []),
        ("v100", "tf32", [("PA722", "warning")]),
        ("v100", "float32", []),
    ],
)
def test_target(gpu, name, rules):
    found = target(get_gpu(gpu), deployed(name)).findings
    assert [(finding.rule, finding.severity) for finding in found] == rules


def test_an_unsupported_format_says_what_to_do():
    [finding] = target(get_gpu("t4"), deployed("bfloat16")).findings
    assert finding.message == "T4 has no bfloat16, in which the plan has 2 modules (the model itself, fc)"
    assert "--formats float16" in finding.suggestion
    assert "--target t4" in finding.suggestion
