"""A slice of the zoo in every test run; `python tests/zoo/run.py` profiles all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run import profile

MANIFEST = json.loads((Path(__file__).parent / "manifest.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_logits", "clip_before_unscale", "amp_done_right"])
def test_the_zoo_is_judged_rightly(name: str, tmp_path: Path) -> None:
    result = profile(next(entry for entry in MANIFEST if entry["name"] == name), tmp_path)
    assert result["right"], result
    assert result["needless"] == []
