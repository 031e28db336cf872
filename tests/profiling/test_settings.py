"""What a profile was asked to do is refused before anything is started."""

import pytest

from precaudit.errors import PrecauditError
from precaudit.profiling.settings import Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps must be a whole number of at least 1, not 0"),
        ({"seeds": -1}, "--seeds must be a whole number of at least 1, not -1"),
        ({"price": float("nan")}, "--price must be a number of dollars per hour"),
        ({"price": -2.0}, "--price must be a number of dollars per hour, not -2.0"),
        ({"target": "abacus"}, "unknown GPU 'abacus'; known GPUs: "),
        ({"target": ""}, "unknown GPU ''; known GPUs: "),
    ],
)
def test_invalid_settings_are_refused(wrong, message):
    with pytest.raises(PrecauditError, match=message):
        Settings(**wrong)


def test_a_card_is_known_by_its_name():
    assert Settings(target="a100").target == "a100"


def test_options_are_the_settings_that_differ_from_the_defaults():
    assert Settings(quick=True, verify=False).options() == {}
    chosen = Settings(steps=9, formats=("float16", "tf32"), target="a100", price=2.5)
    assert chosen.options() == {"--steps": "9", "--target": "a100", "--formats": "float16,tf32", "--price": "2.5"}
