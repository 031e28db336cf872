"""A taste of `repetitions.py`: real profiles of a real model, compared."""

import pytest
from repetitions import Case, outcome

SEED = 1


def test_another_seed_is_not_flagged():
    assert outcome(Case("gpt", "audited", "none", SEED)).regressions == []


@pytest.mark.parametrize("tamper", ["widened", "autocast"])
def test_tampering_is_blamed_on_its_layer(tamper):
    result = outcome(Case("gpt", "audited", tamper, SEED))
    assert result.named, result.regressions
