"""Another seed is no regression; a tampered model is one, blamed on the right layer and metric."""

import pytest
from synthetic_reports import gpt, handwritten_norm, odd_vocabulary, profile, renamed, widened, without_autocast

from precaudit.comparison.compare import compare

TAMPERED = {
    "widened": (widened, ("blocks.1.fc1", "amax")),
    "renamed": (renamed, ("blocks.0.down", "layers_renamed")),
    "odd vocabulary": (odd_vocabulary, ("wte", "layers_resized")),
    "autocast removed": (without_autocast, ("blocks.1.qkv", "dtypes")),
    "handwritten norm": (handwritten_norm, ("norm", "layers_replaced")),
}


@pytest.fixture(scope="module")
def base():
    return profile(gpt(), seed=0)


@pytest.mark.parametrize("seed", range(1, 51))
def test_another_seed_is_not_flagged(base, seed):
    comparison = compare(base, profile(gpt(), seed))
    assert comparison.clean, comparison.regressions
    assert comparison.matched == len(gpt())


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tampering_is_blamed_on_its_layer_first(base, name, seed):
    tamper, (fqn, metric) = TAMPERED[name]
    regressions = compare(base, profile(tamper(gpt()), seed)).regressions
    assert (regressions[0].fqn, regressions[0].metric) == (fqn, metric)


def test_a_widened_layer_moves_by_its_binades(base):
    changes = compare(base, profile(widened(gpt()), seed=1)).changes
    weight = {
        c.metric: c.value for c in changes if c.fqn == "blocks.1.fc1" and (c.role, c.name) == ("weight", "weight")
    }
    assert weight.keys() == {"amax", "distance"}
    assert all(value == pytest.approx(12, abs=0.5) for value in weight.values())
    assert {c.fqn for c in changes} == {"blocks.1.fc1", "blocks.1.act", "blocks.1.fc2"}


def test_an_odd_vocabulary_is_told_to_be_padded(base):
    aligned = [c for c in compare(base, profile(odd_vocabulary(gpt()), seed=1)).changes if c.metric == "alignment"]
    assert [(c.fqn, c.op, c.base, c.head) for c in aligned] == [
        ("wte", "embedding", 512, 509),
        ("head", "linear", 512, 509),
    ]


def test_removed_autocast_shows_in_dtypes_and_plan_of_every_layer_of_the_block(base):
    regressions = compare(base, profile(without_autocast(gpt()), seed=1)).regressions
    block = [spec.fqn for spec in gpt() if spec.fqn.startswith("blocks.1.")]
    assert [c.fqn for c in regressions if c.metric == "formats"] == block
    assert [c.fqn for c in regressions if c.metric == "dtypes"] == [fqn for fqn in block if "norm" not in fqn]


def test_a_handwritten_norm_shows_its_operations(base):
    regressions = compare(base, profile(handwritten_norm(gpt()), seed=1)).regressions
    ops = next(c for c in regressions if c.metric == "ops")
    assert (ops.fqn, ops.base, ops.head) == ("norm", "layer_norm", "mean, mul, pow, rsqrt")


def test_a_rename_changes_nothing_else(base):
    comparison = compare(base, profile(renamed(gpt()), seed=1))
    assert {c.metric for c in comparison.changes} == {"layers_renamed"}
    assert comparison.renamed == {"blocks.0.fc2": "blocks.0.down"}
