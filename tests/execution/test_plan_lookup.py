"""Formats by module name: the module's own, its nearest ancestor's, the default."""

import pytest

from precaudit.execution.formats import PlanLookup, ScopeFormat
from precaudit.instrument.names import ModuleName
from precaudit.model import OpFormat, Plan

PLAN = Plan(
    default="bfloat16",
    modules={"enc": "float16", "enc.0.norm": "float32", "critic.head": "tf32", "": "bfloat16"},
    ops=(OpFormat("enc", "softmax", "float32"), OpFormat("critic.head", "matmul", "float32")),
)


@pytest.mark.parametrize(
    ("model", "fqn", "expected"),
    [
        ("", "enc", "float16"),
        ("", "enc.0.norm", "float32"),
        ("", "enc.0.norm.inner", "float32"),
        ("", "enc.5.new", "float16"),
        ("", "encoder", "bfloat16"),
        ("", "", "bfloat16"),
        ("net", "enc.1", "float16"),
        ("critic", "head", "tf32"),
        ("critic", "body", "bfloat16"),
        ("critic", "", "bfloat16"),
        ("other", "head", "bfloat16"),
    ],
)
def test_nearest_ancestor(model, fqn, expected):
    assert PlanLookup(PLAN).of(ModuleName(model, fqn)).default == expected


def test_exceptions_are_the_module_s_own():
    lookup = PlanLookup(PLAN)
    assert lookup.of(ModuleName("", "enc")).of("softmax") == "float32"
    assert lookup.of(ModuleName("", "enc")).of("linear") == "float16"
    assert lookup.of(ModuleName("", "enc.1")).of("softmax") == "float16"
    assert lookup.of(ModuleName("critic", "head")).of("matmul") == "float32"


def test_a_module_is_looked_up_once():
    lookup = PlanLookup(PLAN)
    assert lookup.of(ModuleName("", "enc.1")) is lookup.of(ModuleName("", "enc.1"))


def test_without_modules_everything_has_the_default():
    assert PlanLookup(Plan(default="float16")).of(ModuleName("m", "a.b")) == ScopeFormat("float16")
