"""The catalogue of rules: complete, and shown by `--fail-on list`."""

import ast
import re
from pathlib import Path

import pytest

from precaudit.__main__ import main
from precaudit.catalogue import CATALOGUE, COMPARED, rule_of
from precaudit.catalogue.metrics import METRICS
from precaudit.comparison.limits import LIMITS

ROOT = Path(__file__).parent.parent / "precaudit"


def made(path):
    """The rule ids among a file's string constants; docstrings only mention theirs."""
    constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return {text for text in constants if isinstance(text, str) and re.fullmatch(r"PA\d{3}", text)}


def test_every_rule_that_is_made_is_in_the_catalogue_and_no_other():
    sources = [path for path in ROOT.rglob("*.py") if "catalogue" not in path.parts]
    assert set().union(*map(made, sources)) == set(CATALOGUE)
    assert not [path for path in sources if re.search(r"[\"']PA\d*\{", path.read_text())], "ids are spelled out"


@pytest.mark.parametrize("rule", CATALOGUE.values(), ids=lambda rule: rule.id)
def test_a_rule_is_described_in_one_sentence_each(rule):
    assert len(rule.title) <= 48
    assert not rule.title.endswith(".")
    for sentence in (rule.meaning, rule.remedy):
        assert re.fullmatch(r"[A-Z].{8,100}[.]", sentence)
    assert rule_of(rule.id) is rule


def test_rules_outside_of_it():
    for name, metric in METRICS.items():
        assert rule_of(COMPARED + name).title == metric.help
    assert rule_of("PA999").title == rule_of("PA999").id == "PA999"
    assert rule_of("compare-nothing").title == "compare-nothing"


@pytest.mark.parametrize("verb", ["profile", "check"])
def test_fail_on_list_shows_what_the_command_takes(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--fail-on", "error", "--fail-on", "list"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.partition(" ")[0] for line in lines]
    assert {word for word in first if word.startswith("PA")} == {id for id, r in CATALOGUE.items() if r.verb == verb}
    assert set(first) >= set(LIMITS)
