"""A slice of the zoo in every test run; `python tests/zoo/run.py` profiles all of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ZOO = Path(__file__).parent


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_run", ZOO / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_logits", "running_total", "clip_before_unscale", "mlp_classifier"])
def test_the_zoo_is_judged_rightly(name: str, tmp_path: Path) -> None:
    zoo = load_runner()
    entry = next(e for e in json.loads((ZOO / "manifest.json").read_text()) if e["name"] == name)
    report, code, _ = zoo.profile(entry, tmp_path)
    result = zoo.judge(entry, report, code)
    assert zoo.passed(entry, result), result
