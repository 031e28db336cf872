"""Formats by module name: the module's own, its nearest ancestor's, the default."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn

from precaudit.execution.emulated import Emulator
from precaudit.execution.formats import PlanLookup, ScopeFormat
from precaudit.instrument.names import ModuleName, ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.model import LossScale, OpFormat, Plan
from precaudit.model.fitting import fit_names, stands_for

ONE = Plan(
    default="bfloat16",
    modules={"enc": "float16", "enc.0.norm": "float32", "head": "tf32", "": "bfloat16"},
    ops=(OpFormat("enc", "softmax", "float32"), OpFormat("", "matmul", "float32")),
)
SEVERAL = Plan(
    default="bfloat16",
    modules={
        **{"net.enc": "float16", "net.enc.0.norm": "float32", "net.head": "bfloat16"},
        **{"critic.head": "tf32", "critic": "float32", "judge": "float16"},
    },
    ops=(OpFormat("critic.head", "matmul", "float32"),),
)
MODULES = {
    "net": ("", "enc", "enc.0", "enc.0.norm", "head"),
    "critic": ("", "head", "body"),
    "judge": ("",),
    "ema": ("", "enc", "enc.0", "enc.0.norm", "head"),
}


def lookup(plan):
    return PlanLookup(plan, lambda model: MODULES.get(model, ()))


@pytest.mark.parametrize(
    ("fqn", "expected"),
    [
        ("enc", "float16"),
        ("enc.0.norm", "float32"),
        ("enc.0.norm.inner", "float32"),
        ("enc.5.new", "float16"),
        ("encoder", "bfloat16"),
        ("head", "tf32"),
        ("", "bfloat16"),
    ],
)
def test_the_nearest_ancestor_in_a_plan_for_one_model(fqn, expected):
    assert lookup(ONE).of(ModuleName("net", fqn)).default == expected


@pytest.mark.parametrize(
    ("model", "fqn", "expected"),
    [
        ("net", "enc.0", "float16"),
        ("net", "head", "bfloat16"),
        ("critic", "head", "tf32"),
        ("critic", "body", "float32"),
        ("critic", "", "float32"),
        ("judge", "", "float16"),
        ("ema", "enc.0", "float16"),
        ("unknown", "enc", "bfloat16"),
    ],
)
def test_the_model_s_own_part_of_a_plan_for_several(model, fqn, expected):
    assert lookup(SEVERAL).of(ModuleName(model, fqn)).default == expected


def test_model_with_the_name_of_one_of_its_modules():
    """`model = Wrapper()` with `self.model = Net()` inside: `head` and `model.head` are two modules."""
    plan = Plan(default="bfloat16", modules={"head": "float32", "model": "float16", "model.head": "bfloat16"})
    found = PlanLookup(plan, lambda model: ("", "head", "model", "model.head"))
    assert found.of(ModuleName("model", "head")).default == "float32"
    assert found.of(ModuleName("model", "model.head")).default == "bfloat16"
    assert found.of(ModuleName("model", "model.other")).default == "float16"
    assert found.of(ModuleName("model", "other")).default == "bfloat16"


def test_exceptions_are_the_module_s_own():
    assert lookup(ONE).of(ModuleName("net", "enc")).of("softmax") == "float32"
    assert lookup(ONE).of(ModuleName("net", "enc")).of("linear") == "float16"
    assert lookup(ONE).of(ModuleName("net", "enc.1")).of("softmax") == "float16"
    assert lookup(ONE).of(ModuleName("net", "")).of("matmul") == "float32"
    assert lookup(SEVERAL).of(ModuleName("critic", "head")).of("matmul") == "float32"


def test_a_module_is_looked_up_once():
    found = lookup(ONE)
    assert found.of(ModuleName("net", "enc.1")) is found.of(ModuleName("net", "enc.1"))


def test_without_modules_everything_has_the_default():
    assert lookup(Plan(default="float16")).of(ModuleName("m", "a.b")) == ScopeFormat("float16")


def test_two_models_in_one_process_each_find_their_part():
    seen = {}

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x):
            seen[self.name] = self.lin(x).dtype
            return x

    def train():
        first, second = Spy(), Spy()
        first.name, second.name = "first", "second"
        first(torch.ones(1, 2))
        second(torch.ones(1, 2))

    scopes = ModuleScopes(ModuleNames())
    plan = Plan(default="bfloat16", modules={"first.lin": "float16", "second.lin": "float32"})
    scopes.listeners.append(Emulator(plan, scopes))
    with scopes.installed():
        train()
    assert seen == {"first": torch.float16, "second": torch.float32}


def test_a_model_is_found_however_deep_a_wrapper_has_it():
    plan = Plan("bfloat16", {"solver.f.net.0": "float32", "solver.f.net.1": "bfloat16"})
    assert fit_names(plan, {"", "net", "net.0", "net.1"})["solver.f.net.0"] == "net.0"


def test_of_two_copies_in_a_plan_the_trained_one_is_taken():
    plan = Plan("bfloat16", {"average.0": "bfloat16", "online.0": "float32"})
    assert fit_names(plan, {"", "0"}) == {"online.0": "0"}


def test_root_name_alone_does_not_match_a_plan():
    """A loss that wraps the model computes too, and so the plan has its root."""
    plan = Plan("bfloat16", {"": "bfloat16", "model": "bfloat16", "model.0": "float32", "model.1": "bfloat16"})
    assert fit_names(plan, {"", "0", "1"}) == {"model": "", "model.0": "0", "model.1": "1"}
    assert fit_names(plan, {"", "model", "model.0", "model.1"}) == {name: name for name in plan.modules}
    assert fit_names(Plan("bfloat16", {"": "float32"}), {""}) == {"": ""}


# ---------------------------------------------------------------- what a plan says of itself


@pytest.mark.parametrize(
    ("formats", "narrowest"),
    [
        (("float32",), "float32"),
        (("float32", "tf32"), "tf32"),
        (("tf32", "float16", "float32"), "float16"),  # as precise, with less range
        (("float16", "bfloat16", "tf32"), "bfloat16"),
        (("bfloat16", "float8_e4m3", "float16"), "float8_e4m3"),
        (("float8_e4m3", "float8_e5m2", "float32"), "float8_e5m2"),
    ],
)
def test_the_narrowest_format_is_the_least_precise_one(formats, narrowest):
    for default, *rest in permutations(formats):
        assert Plan(default, {str(i): name for i, name in enumerate(rest)}).narrowest == narrowest


SAID = Plan("bfloat16", {"a": "float16"}, (OpFormat("b", "mul", "float32"),), loss_scale=LossScale("dynamic", 4.0, 9))


@pytest.mark.parametrize(
    "edit",
    [
        {"default": "float16"},
        {"modules": {"a": "float32"}},
        {"modules": {"b": "float16"}},
        {"ops": ()},
        {"ops": (OpFormat("b", "add", "float32"),)},
        {"loss_scale": LossScale("static", 4.0, 9)},
        {"loss_scale": LossScale("dynamic", 8.0, 9)},
        {"loss_scale": LossScale("dynamic", 4.0, 10)},
        {"matmul_precision": "high"},
        {"float8_scaling": "row"},
    ],
)
def test_whatever_changes_a_computation_changes_the_digest(edit):
    assert replace(SAID, **edit).digest != SAID.digest


def test_what_changes_no_computation_keeps_the_digest():
    told = replace(SAID, because={"a": "why"}, target="a100", types={"a": "Linear"}).judged("pass")
    assert told.digest == SAID.digest
    assert replace(SAID, modules={"a": "bf16"}).digest == replace(SAID, modules={"a": "bfloat16"}).digest


@pytest.mark.parametrize(
    ("part", "stands"),
    [
        (SAID, True),
        (replace(SAID, modules={"a": "float32"}), True),
        (replace(SAID, modules={"a": "bfloat16"}), False),
        (replace(SAID, ops=()), False),
        (replace(SAID, ops=(OpFormat("b", "mul", "float16"),)), False),
        (Plan("float32"), True),
    ],
)
def test_a_part_stands_for_one_that_is_nowhere_wider(part, stands):
    assert stands_for(part, SAID) is stands
