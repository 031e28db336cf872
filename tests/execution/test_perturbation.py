"""Slightly other initial weights: rounded to a format, or one percent off; once a model, before its first forward."""

import torch
from torch import nn

from precaudit.execution.perturbation import Perturbation, jitter, rounded_to
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes

bf16 = rounded_to("bfloat16")


def test_rounding_to_a_format_is_its_cast_within_its_range():
    values = torch.randn(10000)
    assert torch.equal(bf16(values), values.bfloat16().float())
    normal = values[values.abs() > 2**-14]
    assert torch.equal(rounded_to("float16")(normal), normal.half().float())


def test_jitter_is_one_percent_of_the_rms_and_repeats():
    values = torch.randn(10000)
    noise = jitter(3)(values) - values
    assert 0.0095 < (noise.square().mean() / values.square().mean()).sqrt() < 0.0105
    assert torch.equal(jitter(3)(values), jitter(3)(values))
    assert not torch.equal(jitter(3)(values), jitter(4)(values))


def test_jitter_leaves_the_script_s_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    jitter(1)(torch.ones(5))
    assert torch.equal(torch.rand(3), expected)


def test_every_model_moves_once_before_its_first_forward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Embedding(4, 3))
    model.half_table = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(Perturbation(bf16))
    with scopes.installed():
        model[0](torch.ones(2, 3))
        first = model[0].weight.detach().clone()
        model[2](torch.tensor([1]))
        model[0](torch.ones(2, 3))
    assert torch.equal(first, bf16(before["0.weight"]))
    assert torch.equal(model[0].weight, first)
    assert torch.equal(model[2].weight, bf16(before["2.weight"]))
    assert torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model.half_table, before["half_table"])
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_a_model_called_as_a_whole_moves_as_a_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    before = [p.detach().clone() for p in model.parameters()]
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(Perturbation(bf16))
    with scopes.installed():
        model(torch.ones(2, 3))
        model(torch.ones(2, 3))
        model[1](torch.ones(2, 3))
    assert all(torch.equal(p, bf16(b)) for p, b in zip(model.parameters(), before, strict=True))


def test_a_part_that_is_called_by_itself_first_moves_once():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3), "head": nn.Linear(3, 1)})
    model.decoder.weight = model.encoder.weight
    model.forward = lambda x: model.head(model.decoder(model.encoder(x)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(Perturbation(lambda parameter: parameter + 1))
    with scopes.installed():
        model.encoder(torch.ones(2, 3))
        model(torch.ones(2, 3))
    assert all(torch.equal(p, before[name] + 1) for name, p in model.named_parameters())


def test_a_lazy_model_moves_once_it_has_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    scopes = ModuleScopes(ModuleNames())
    scopes.listeners.append(Perturbation(bf16))
    with scopes.installed():
        model(torch.ones(2, 3))
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.ones(2, 3))
    assert all(torch.equal(p, bf16(b)) for p, b in zip(model.parameters(), before, strict=True))


def test_a_model_that_compares_its_values_moves_once():
    class Elementwise(nn.Linear):
        def __eq__(self, other):
            return self.weight == other.weight

        __hash__ = nn.Module.__hash__

    model, scopes, changed = Elementwise(3, 3), ModuleScopes(ModuleNames()), []
    scopes.listeners.append(Perturbation(lambda parameter: changed.append(parameter) or parameter))
    with scopes.installed():
        model(torch.ones(2, 3))
        model(torch.ones(2, 3))
    assert len(changed) == 2
