"""How many seeds are asked for, and whether they decide."""

import numpy as np
import pytest

from precaudit.model import Difference, Verification
from precaudit.reporting.forecast import AFFORDABLE, seeds_needed
from precaudit.verification.equivalence import LOOKS, equivalence


def verification(result, pairs):
    difference = Difference(result.mean, result.lower, result.upper)
    return Verification("inconclusive", margin=1.0, seeds=tuple(range(pairs)), difference=difference)


@pytest.mark.parametrize("deviation", [0.7, 1.0, 1.5, 2.0])
def test_the_seeds_that_are_asked_for_verify_an_equal_plan(deviation):
    """As a profile with more seeds does: the first ones come again, and the only look is at the end."""
    rng, asked, verified, half = np.random.default_rng(0), 0, 0, 0
    for differences in rng.normal(0, deviation, (200, AFFORDABLE)):
        looks = [equivalence(differences[:look], 1.0) for look in LOOKS]
        needed = seeds_needed(verification(looks[-1], LOOKS[-1]))
        if any(look.decision != "inconclusive" for look in looks) or needed > AFFORDABLE:
            continue
        asked += 1
        verified += equivalence(differences[:needed], 1.0).decision == "pass"
        half += equivalence(differences[: max(9, needed // 2)], 1.0).decision == "pass"
    assert asked > 20
    assert verified > 0.75 * asked
    assert half < 0.9 * verified


def test_more_seeds_than_one_would_pay_for_are_a_number_too():
    wide = Verification(margin=0.01, seeds=tuple(range(8)), difference=Difference(0.1, -0.1, 0.3))
    assert AFFORDABLE < seeds_needed(wide) < 1e5
    assert seeds_needed(Verification(margin=0.01, seeds=(0,), difference=Difference(0.1))) is None
