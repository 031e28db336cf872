"""How figures read at the ends of their units."""

import pytest

from precaudit.reporting import results
from precaudit.reporting.words import number, seconds, size


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (number(999.7), "1,000"),
        (number(999.4), "999"),
        (number(0.012345), "0.0123"),
        (number(2e6), "2e+06"),
        (seconds(0.9997), "1,000 ms"),
        (seconds(0.0123), "12.3 ms"),
        (size(1010 * 2**20), "1,010 MiB"),
        (size(1023), "1,023 B"),
        (size(3 * 2**30), "3 GiB"),
    ],
)
def test_no_exponent_where_units_change(said, words):
    assert said == words


def test_a_script_below_the_checkout_is_named_from_its_root(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert results.workspace_path("train.py") == "sub/train.py"
    assert results.workspace_path(str(tmp_path / "a.py")) == "a.py"
    assert results.workspace_path("/elsewhere/a.py") == "/elsewhere/a.py"
