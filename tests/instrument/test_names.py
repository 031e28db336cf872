"""Models are found by the script's own names for them, wherever it keeps them."""

import copy
import gc
import subprocess
import sys
import textwrap

import pytest
import torch
from instrumented import recorded
from torch import nn

from precaudit.instrument.names import ModuleName, ModuleNames, fqns_of

X = torch.ones(1, 2)
INSIDE = ["_forward_module", "_forward_module.0", "_forward_module.1"]
GLOBAL_MODEL = nn.Sequential(nn.Linear(2, 2))


def layer():
    return nn.Linear(2, 2)


class Trainer:
    def __init__(self):
        self.network = nn.Sequential(layer())

    def fit(self):
        return self.network(X)


def names_of(action):
    """The names of the outermost modules that `action` calls."""
    with recorded() as (recorder, _, _):
        action()
    return recorder.entered_names


def test_a_local_variable():
    def train():
        net = nn.Sequential(layer(), nn.Sequential(layer()))
        net(X)

    assert names_of(train) == [("net", ""), ("net", "0"), ("net", "1"), ("net", "1.0")]


def test_a_global_variable():
    assert names_of(lambda: GLOBAL_MODEL(X))[0] == ("GLOBAL_MODEL", "")


def test_the_name_that_the_model_had_first():
    """The lines to paste go where the model is built; `raw_model` and a trainer's attribute do not exist there yet."""

    class Loop:
        def __init__(self, inner):
            self.inner = inner

    def train():
        model = nn.Sequential(layer())
        raw_model = model
        loop = Loop(raw_model)
        loop.inner(X)

    assert names_of(train)[0] == ("model", "")


def test_an_attribute_of_self():
    assert names_of(Trainer().fit) == [("network", ""), ("network", "0")]


def test_an_attribute_of_an_object_in_an_outer_frame():
    class Runner:
        def __init__(self):
            self.trainer = Trainer()

        def run(self):
            self.trainer.fit()

    runner = Runner()
    assert names_of(runner.run)[0] == ("network", "")


def test_members_of_a_dictionary():
    def train():
        nets = {"generator": layer(), "critic": layer()}
        nets["generator"](X)
        nets["critic"](X)

    assert names_of(train) == [("generator", ""), ("critic", "")]


@pytest.mark.parametrize(
    ("name", "variable"),
    [("LitModel", "lit_model"), ("GPT2LMHeadModel", "gpt2_lm_head_model"), ("VAE", "vae"), ("net_b", "net_b")],
)
def test_name_is_derived_from_the_class_without_a_variable(name, variable):
    kind = type(name, (nn.Linear,), {})
    assert names_of(lambda: kind(2, 2)(X)) == [(variable, "")]


def test_a_submodule_called_directly_belongs_to_the_whole_model():
    def train():
        model = nn.Sequential(layer(), nn.Sequential(layer()))
        part = model[1]
        part[0](X)
        model(X)

    assert names_of(train)[:2] == [("model", "1.0"), ("model", "")]


def test_a_method_other_than_forward():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = layer()

        def encode(self, x):
            return self.encoder(x)

    def train():
        vae = Auto()
        vae.encode(X)

    assert names_of(train) == [("vae", "encoder")]


def installed(source):
    """The functions of a library that is installed beside torch."""
    module = {"__name__": "solver"}
    exec(compile(textwrap.dedent(source), "/lib/site-packages/solver.py", "exec"), module)
    return module


def test_library_wrapper_without_state_is_not_the_model():
    solver = installed("""
        from torch import nn

        class Reversed(nn.Module):
            def __init__(self, function):
                super().__init__()
                self.function = function

            def forward(self, x):
                return -self.function(x)

        def solve(function, x):
            reversed = Reversed(Reversed(function))
            return reversed(x)
    """)

    def train():
        net = nn.Sequential(layer())
        for _ in range(2):
            solver["solve"](net, X)

    assert names_of(train) == 2 * [("net", ""), ("net", ""), ("net", ""), ("net", "0")]


def test_a_library_s_model_with_the_script_s_inside_is_the_model():
    trainer = installed("""
        from torch import nn

        def train(body, head, x):
            model = nn.Sequential(body, head)
            return model(x)
    """)

    def train():
        body, head = layer(), layer()
        body(X)
        trainer["train"](body, head, X)

    assert names_of(train) == [("body", ""), ("model", ""), ("model", "0"), ("model", "1")]


def test_two_models_of_one_class_and_a_copy():
    def train():
        first, second = layer(), layer()
        average = copy.deepcopy(first)
        for model in (first, second, average):
            model(X)

    assert [name for name, _ in names_of(train)] == ["first", "second", "average"]
    assert names_of(lambda: [net(X) for net in [layer()]])[0][1] == ""


def test_an_average_beside_the_model_has_its_own_name():
    def train():
        model = layer()
        ema = torch.optim.swa_utils.AveragedModel(model)
        model(X)
        ema.update_parameters(model)
        ema(X)

    assert names_of(train) == [("model", ""), ("ema", ""), ("ema", "")]


def test_a_model_that_is_made_again_keeps_its_name_without_any_garbage_collection():
    def train():
        for _ in range(3):
            model = nn.Sequential(layer())
            model(X).sum().backward()

    gc.collect()
    gc.disable()
    try:
        assert names_of(train) == [("model", ""), ("model", "0")] * 3
    finally:
        gc.enable()


def test_a_model_whose_constructor_computes_before_it_is_a_module():
    class Normalized(nn.Module):
        def __init__(self, transform):
            inputs = transform(X)
            super().__init__()
            self.transform, self.layer = transform, nn.Linear(inputs.shape[1], 2)

    def train():
        transform = layer()
        Normalized(transform)

    assert names_of(train) == [("transform", "")]


def test_modules_added_later():
    def train():
        model = nn.Sequential(layer())
        model(X)
        model.append(layer())
        model(X)

    assert names_of(train) == [("model", ""), ("model", "0"), ("model", ""), ("model", "0"), ("model", "1")]


def test_a_part_that_becomes_part_of_a_larger_model():
    def train():
        backbone = nn.Sequential(layer())
        backbone(X)
        model = nn.Sequential(backbone, layer())
        model(X)

    assert names_of(train) == [
        ("backbone", ""),
        ("backbone", "0"),
        ("model", ""),
        ("model", "0"),
        ("model", "0.0"),
        ("model", "1"),
    ]


def test_latest_name_of_a_part_of_a_larger_model():
    names = ModuleNames()
    head, backbone = layer(), nn.Sequential(layer())
    names.add_model(head, "head")
    names.add_model(backbone, "backbone")
    body = nn.ModuleList([backbone])
    names.add_model(body, "body")
    model = nn.ModuleDict({"body": body})
    names.add_model(model, "model")
    assert names.latest(ModuleName("backbone", "0")) == ModuleName("model", "body.0.0")
    assert names.latest(ModuleName("head", "")) == ModuleName("head", "")
    assert list(names.models) == ["head", "model"]


def test_losses_are_named_like_modules():
    def train():
        criterion = nn.MSELoss()
        criterion(X, X)

    assert names_of(train) == [("criterion", "")]


def test_no_module_is_kept_alive():
    names = ModuleNames()
    model = nn.Sequential(layer())
    assert names.add_model(model, "model") == "model"
    assert names.model("model") is model
    assert list(names.models) == ["model"]
    del model
    assert names.models == {}
    assert names.model("model") is None


def test_unique_names_for_living_models():
    names = ModuleNames()
    first, second = layer(), layer()
    assert [names.add_model(first, "m"), names.add_model(second, "m"), names.add_model(first, "m")] == ["m", "m_2", "m"]


class Standing(nn.Module):
    """A wrapper that gives the inner model's state out as its own, as Lightning Fabric's does."""

    def __init__(self, model, part=None):
        super().__init__()
        self._forward_module = model
        self._original_module = part or model

    def forward(self, x):
        return self._forward_module(x)

    def state_dict(self, *args, **kwargs):
        return self._original_module.state_dict(*args, **kwargs)


class Sharing(Standing):
    """Not a wrapper: it holds a parameter beside the model."""

    def __init__(self, model):
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda m: m, ["", "0", "1"]),
        (Standing, ["", "", "0", "1"]),
        (lambda m: Standing(nn.DataParallel(m), m), ["", "", "", "0", "1"]),
        (lambda m: Standing(m, layer()), ["", *INSIDE, "_original_module"]),
        (Sharing, ["", *INSIDE]),
        (lambda m: torch.compile(m, backend="eager"), ["", "", "0", "1"]),
        (nn.DataParallel, ["", "", "0", "1"]),
        (lambda m: nn.ModuleDict({"module": m}), ["", "module", "module.0", "module.1"]),
        (lambda m: nn.Sequential(nn.DataParallel(m)), ["", "0", "0", "0.0", "0.1"]),
    ],
    ids=["plain", "standing", "around", "two models", "sharing", "compiled", "parallel", "named module", "inside"],
)
def test_wrappers_are_invisible(wrap, expected):
    model = nn.Sequential(layer(), layer())
    assert list(fqns_of(wrap(model)).values()) == expected


def test_a_script_s_global_model(tmp_path):
    """As `__main__`, where the model is a global of the script."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from precaudit.instrument.names import ModuleNames
        names = ModuleNames()
        net = torch.nn.Sequential(torch.nn.Linear(2, 2))
        def call(m):
            return names.of(m)
        name = call(net[0])
        print(name.model, name.fqn)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["net", "0"]
