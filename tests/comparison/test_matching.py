"""Layers are matched by name, by structure, and never against the evidence."""

import time
from dataclasses import replace

import pytest
from synthetic_reports import gpt, profile

from precaudit.comparison.matching import match_layers
from precaudit.model import Exponents, Layer, TensorRecord, TensorStats


def layer(fqn, type_="Linear", parameters=64, exponent=0):
    stats = TensorStats(numel=1, amax=2.0**exponent, amin_nonzero=2.0**exponent, exponents=Exponents(exponent, (1,)))
    return Layer(fqn, type_, parameters, 1, (TensorRecord("weight", stats, "weight"),) if parameters else ())


def renames(base, head):
    return {old: new for old, new in match_layers(base, head).names.items() if old != new}


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "encoder.{}.inner"])
def test_a_wrapped_model_is_renamed_layer_by_layer(wrap):
    base, head = profile(gpt(blocks=4), 0).layers, profile(gpt(blocks=4), 1).layers
    head = tuple(replace(layer, fqn=wrap.format(layer.fqn)) for layer in head)
    matching = match_layers(base, head)
    assert matching.names == {layer.fqn: wrap.format(layer.fqn) for layer in base}
    assert not matching.added
    assert not matching.removed


def test_an_inserted_layer_is_the_one_that_is_new():
    base = [layer("0"), layer("1", "ReLU", 0), layer("2"), layer("3", "ReLU", 0), layer("4", parameters=10)]
    head = [layer("0"), layer("1", "LayerNorm", 16), *(replace(x, fqn=str(int(x.fqn) + 1)) for x in base[1:])]
    matching = match_layers(base, head)
    assert [x.fqn for x in matching.added] == ["1"]
    assert not matching.removed
    assert matching.names == {"0": "0", "1": "2", "2": "3", "3": "4", "4": "5"}


def test_equal_layers_are_distinguished_by_their_ranges():
    base = [layer("start", "Norm", 3), layer("small", exponent=-9), layer("large", exponent=4)]
    head = [layer("start", "Norm", 3), layer("b", exponent=4), layer("a", exponent=-9)]
    assert renames(base, head) == {"small": "a", "large": "b"}


def test_another_type_or_size_under_one_name_is_still_that_layer():
    base = [layer("norm", "LayerNorm", 64), layer("fc", "Linear", 640)]
    head = [layer("norm", "RMSNorm2", 32), layer("fc", "Linear", 320)]
    assert match_layers(base, head).names == {"norm": "norm", "fc": "fc"}


def test_distant_layers_are_not_a_rename():
    middle = [layer(f"norm{i}", "Norm", 5) for i in range(30)]
    matching = match_layers([layer("old"), *middle], [*middle, layer("new")])
    assert [x.fqn for x in matching.removed] == ["old"]
    assert [x.fqn for x in matching.added] == ["new"]


def test_layers_with_other_ranges_and_names_are_not_a_rename():
    matching = match_layers([layer("old", exponent=-20)], [layer("new", exponent=0)])
    assert (len(matching.removed), len(matching.added)) == (1, 1)


def test_as_many_layers_match_in_whichever_order_reports_are_compared():
    """Two good matches and none between far layers, or one of each kind: the costs may add up alike."""
    base = [layer(fqn, parameters=0) for fqn in ("0", "a", "b", "00", "0a")]
    head = [layer(fqn, parameters=0) for fqn in (".", "0000", "0", "000", "00")]
    assert len(match_layers(base, head).pairs) == len(match_layers(head, base).pairs) == 5


def test_duplicate_names_do_not_break():
    twice = [layer("fc"), layer("fc")]
    assert len(match_layers(twice, twice).pairs) == 2
    assert len(match_layers(twice, twice[:1]).removed) == 1


def test_one_layer_among_more_than_are_assigned_at_once():
    one, others = [layer("a.fc")], [layer(f"b.{i}.fc") for i in range(1001)]
    for base, head in ((one, others), (others, one)):
        matching = match_layers(base, head)
        assert len(matching.pairs) + len(matching.removed) == len(base)
        assert len(matching.pairs) + len(matching.added) == len(head)


def test_five_thousand_renamed_layers_match_in_seconds():
    base = [layer(f"a.{i}.fc") for i in range(5000)]
    head = [layer(f"b.{i}.fc") for i in range(5000)]
    started = time.perf_counter()
    assert renames(base, head) == {f"a.{i}.fc": f"b.{i}.fc" for i in range(5000)}
    assert time.perf_counter() - started < 20
