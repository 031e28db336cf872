"""The calibration: plans are what they claim, rates are right, one command runs, the page is its results'."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_arms import EQUAL, Trainer, dial, judge_arm, round_to
from calibration_models import TRAININGS
from calibration_tables import rate, readme, summary, truths
from pandas import DataFrame

from precaudit.execution.rounding import round_mantissa

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "reports" / "calibration"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- plans of known truth


@pytest.mark.parametrize("training", TRAININGS)
def test_trainings_run_and_repeat_themselves(training):
    first, second = (Trainer(training, 0, 4).trials().references[0] for _ in range(2))
    assert first.status == "stopped", first.error
    assert len(first.losses) == 4
    assert first.losses == second.losses


@pytest.mark.parametrize("arm", EQUAL, ids=lambda arm: arm.name)
def test_equal_plans_change_every_run_slightly(arm):
    row = judge_arm(Trainer("regression", 0, 12), arm, every_seed=False)
    assert all(0 < abs(difference) < (1 if "seed" in arm.name else 0.02) for difference in row.half)


def test_stronger_degradation_costs_more():
    trainer = Trainer("digits_mlp", 0, 12)
    rows = [judge_arm(trainer, dial(bits), every_seed=True) for bits in (6, 2, -1)]
    costs = [abs(float(np.mean(row.half))) for row in rows]
    assert costs == sorted(costs)
    assert rows[0].verdict == "pass"
    assert rows[-1].verdict != "pass"


def test_fractional_degradation_lies_between_integers():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    errors = [(round_to(values, bits) - values).abs().mean() for bits in (3, 2.5, 2, 1.5)]
    assert errors == sorted(errors)
    assert torch.equal(round_to(values, 2), round_mantissa(values, 2))
    doubled = values + 2 * (round_mantissa(values, 0) - values)
    torch.testing.assert_close(round_to(values, -1), doubled)


# ---------------------------------------------------------------- rates


def row(group, difference, verdict="pass", kind="dial", **fields):
    usual = {"training": "a", "arm": "2 bits", "margin": 0.01, "window": "half", "pairs": 3, "horizon": 5}
    pairs = [difference - 0.001, difference + 0.001]
    usual |= {"quarter": [9.0, 9.0], "half": pairs, "learned": True, "parted": [1, 1], "mean": 0.0}
    return usual | {"group": group, "verdict": verdict, "kind": kind} | fields


def test_the_truth_of_a_verdict_is_measured_on_the_seeds_of_others():
    known = truths(DataFrame([row(0, 0.010), row(1, 0.020), row(2, 0.030), row(0, 0.0, kind="equal", arm="ulp")]))
    assert known["truth"].tolist() == pytest.approx([0.025, 0.020, 0.015])
    assert known["ratio"].tolist() == pytest.approx([2.5, 2.0, 1.5])


def test_a_verdict_that_named_no_margin_gets_the_usual_one():
    known = truths(DataFrame([row(0, 0.02, "fail", margin=None, window="quarter"), row(1, 0.02), row(2, 0.02)]))
    assert known["margin"].tolist() == [0.01] * 3
    assert known["truth"].tolist() == pytest.approx([9.0, 0.02, 0.02])


def test_wrong_verdicts_are_counted_where_they_are_wrong():
    rows = [row(0, 0.013), row(1, 0.013, "fail"), row(2, 0.013, "inconclusive")]
    rows += [row(group, 0.004, "fail", "format", arm="bfloat16") for group in range(2)]
    rows += [row(0, 0.0, "fail", "equal", arm="ulp"), row(1, 0.0, "pass", "equal", arm="ulp")]
    nothing = [row(0, 0.0, arm="standing still", learned=False), row(1, 0.0, arm="standing still")]
    found = summary({"rows": rows, "nothing_to_learn": nothing})
    passes, fails = found["false_pass"], found["false_fail"]
    assert (passes["at or beyond the margin"]["count"], passes["at or beyond the margin"]["of"]) == (1, 3)
    assert passes["from 1 to 1.5 margins"]["rate"] == pytest.approx(1 / 3)
    assert (fails["equal by construction"]["count"], fails["equal by construction"]["of"]) == (1, 2)
    assert fails["formats off by less than half a margin"]["rate"] == 1.0
    assert fails["anything inside the margin"]["of"] == 2
    assert found["nothing_to_learn"]["standing still"]["refused"]["rate"] == 0.5


def test_intervals_are_clopper_pearson():
    assert rate(0, 100)["upper"] == pytest.approx(1 - 0.025 ** (1 / 100))
    assert rate(0, 0)["rate"] is None


# ---------------------------------------------------------------- the command and what it wrote


def test_one_command_goes_on_where_it_was_and_writes_both_files(tmp_path):
    command = [sys.executable, str(HERE / "train.py"), "--quick", "--out", str(tmp_path)]
    (tmp_path / "partial.jsonl").write_text('{"cut short')
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "results.json"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["trainings"] > 100
    assert {row["kind"] for row in results["rows"]} == {"equal", "format", "dial"}
    assert (tmp_path / "README.md").read_text() == readme(results)
    assert "False pass" in done.stdout


def test_the_published_page_is_that_of_the_published_results():
    results = json.loads((PUBLISHED / "results.json").read_text())
    fresh = summary(results)
    assert json.loads(json.dumps(fresh)) == results["summary"]
    assert (PUBLISHED / "README.md").read_text() == readme(results)


def test_the_published_rates_are_of_enough_trainings_and_hold_their_targets():
    results = json.loads((PUBLISHED / "results.json").read_text())
    found = results["summary"]
    assert results["trainings"] >= 400
    assert found["false_pass"]["from 1 to 1.5 margins"]["rate"] <= 0.05
    assert found["false_fail"]["equal by construction"]["rate"] <= 0.01
