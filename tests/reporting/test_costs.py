"""What reports say of time and money, in words."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from precaudit.model import KernelTime, Layer, LayerTime, Plan, Report, TensorCores, TimeShare, Verification
from precaudit.reporting import costs
from precaudit.reporting.headline import headline
from precaudit.reporting.page_data import times
from precaudit.words import usd

TIMED = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "method": "4 precisions by turns",
    "step_seconds": {"float32": 0.02, "tf32": 0.016, "amp": None, "plan": 0.01},
    "speedup": {"tf32": 1.25, "amp": None, "plan": 2.0},
    "speedup_quartiles": {"tf32": None, "amp": None, "plan": [1.9, 2.1]},
    "peak_memory_bytes": {"float32": 3 * 2**30, "tf32": None, "amp": None, "plan": 2**30},
    "data_wait_share": 0.25,
    "tensor_pipe_share": {"float32": 0.0, "tf32": None, "amp": 0.31, "plan": 0.305},
    "predicted_step_seconds": {"float32": 0.01, "plan": 0.012},
    "prediction_error": {"float32": -0.5, "plan": 0.2},
}
PRICED = {
    "price_per_hour": 3.6,
    "device": "NVIDIA H100 80GB HBM3",
    "usd_per_thousand_steps_float32": 0.02,
    "usd_per_epoch_float32": None,
    "usd_per_thousand_steps_plan": 0.01,
    "energy_joules_per_thousand_steps_float32": 12000.0,
    "energy_joules_per_thousand_steps_plan": 7000.0,
}


def test_times_with_their_spread():
    assert costs.step_times(Report(performance=TIMED)) == [
        "Time of a step: float32 20 ms, tf32 16 ms, the plan 10 ms; default AMP not measured.",
        "Speed against float32, with the middle half of the rounds: tf32 1.25x, the plan 2.00x (1.90x to 2.10x).",
        "Timed: 4 precisions by turns.",
        "Data, and whatever else runs between two steps, takes 25.0% of float32's time.",
        "Tensor Cores busy, by the whole GPU's counters: float32 0%, default AMP 31.0%, the plan 30.5% of the time.",
        "Peak memory: float32 3 GiB, the plan 1 GiB.",
        "Predicted from the card's peaks, with the error: float32 10 ms (-50%), the plan 12 ms (+20%).",
    ]


@pytest.mark.parametrize(
    ("speedup", "quartiles", "words"),
    [
        (
            2.0,
            [1.9, 2.1],
            "2.00x the speed of float32 measured on NVIDIA H100 80GB HBM3, 1.90x to 2.10x in the middle half of the "
            "rounds: the same training in 50% less time.",
        ),
        (2.0, None, "2.00x"),
        (1.02, [1.01, 1.03], "no sure gain"),
        (1.1, [0.9, 1.3], "no sure gain"),
        (0.8, [0.7, 0.9], "no sure gain over float32 measured on NVIDIA H100 80GB HBM3 (0.80x, 0.70x to 0.90x"),
    ],
)
def test_the_worth_of_a_plan_stands_at_the_verdict(speedup, quartiles, words):
    timed = {**TIMED, "speedup": {"plan": speedup}, "speedup_quartiles": {"plan": quartiles}}
    report = Report(performance=timed, plan=Plan("bfloat16"))
    assert words in headline(replace(report, layers=(Layer("a", "Linear", 1, 1, ()),))).details[-1]
    assert costs.gain(replace(report, performance={**timed, "gpu": None})) == []


@pytest.mark.parametrize(("speedup", "words"), [(2.0, "It was 2.00"), (0.8, "It was not surely faster: 0.80")])
def test_how_fast_a_verified_plan_is_stands_in_its_first_sentence(speedup, words):
    report = Report(layers=(Layer("a", "Linear", 1, 1, ()),), plan=Plan("bfloat16"), verification=Verification("pass"))
    timed = replace(report, performance={**TIMED, "speedup": {"plan": speedup}})
    assert headline(timed).details[0].endswith(f"{words} times as fast.")


def test_the_worth_of_a_plan_is_told_in_money_where_it_has_a_price():
    timed = {**TIMED, "speedup": {"plan": 2.0}, "speedup_quartiles": {"plan": [1.9, 2.1]}}
    (line,) = costs.gain(Report(performance=timed, cost=PRICED))
    assert line.endswith("50% less time, for 0.01 USD in place of 0.02 USD for a thousand steps.")
    run = {**PRICED, "usd_per_run_float32": 40.0, "usd_per_run_plan": 20.0}
    (line,) = costs.gain(Report(performance=timed, cost=run))
    assert line.endswith("for 20.00 USD in place of 40.00 USD for the whole run.")


def test_money_before_and_after():
    assert costs.money(Report(performance=TIMED, cost=PRICED)) == [
        "Energy of a thousand steps, whole card: float32 12,000 J, the plan 7,000 J.",
        "Money at 3.60 USD an hour of this machine (NVIDIA H100 80GB HBM3): 0.02 USD for a thousand steps.",
        "With the plan: 0.01 USD for a thousand steps (50% less).",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.50"),
        (4.353e-05, "0.0000435"),
        (0.05, "0.05"),
        (0, "0.00"),
        (1234.5, "1,234.50"),
        (2e7, "20,000,000.00"),
    ],
)
def test_sums_of_money_are_written_out(value, text):
    assert usd(value) == f"{text} USD"
    assert usd("two") == "two"
    assert usd(math.inf) == "inf USD"


def test_unmeasured_costs_are_stated():
    wide = {"price_per_hour": 3.6, "usd_per_run_float32": 0.5, "usd_per_run_plan": None}
    energy, before, after = costs.money(Report(performance={"energy_method": "not measured: no GPU"}, cost=wide))
    assert energy == "Energy: not measured (no GPU)."
    assert before == "Money at 3.60 USD an hour: 0.50 USD for the whole run."
    assert after == "With the plan: not measured."
    assert "--price" in costs.money(Report())[1]


def test_speedup_of_layers_beside_that_of_steps():
    layers = {"head": {"float32": 0.0, "plan": 0.62}, "odd": None, "none": {"plan": None}}
    lines = costs.step_times(Report(performance={**TIMED, "tensor_pipe_share_by_layer": layers}))
    assert "Tensor Cores busy in large layers' forward, repeated alone: head float32 0%, the plan 62.0%." in lines


def test_missing_counters_are_stated_on_a_gpu():
    refused = {**TIMED, "tensor_pipe_share": {"plan": None}, "counters_method": "not measured: refused (x)"}
    assert "Tensor Cores by the GPU's counters: not measured: refused (x)." in costs.step_times(
        Report(performance=refused)
    )
    assert not any("counters" in line for line in costs.step_times(Report(performance={**refused, "gpu": None})))


def test_more_expensive_plan_is_stated():
    dear = {**PRICED, "usd_per_thousand_steps_plan": 0.03}
    assert "(50% more)" in costs.money(Report(cost=dear))[2]


@pytest.mark.parametrize("key", TIMED)
@pytest.mark.parametrize("value", [None, "nan", True, {}, [], {"plan": "inf"}, {"plan": [1]}, {"plan": None}])
def test_implausible_costs_are_rendered(key, value):
    lines = costs.step_times(Report(performance={**TIMED, key: value}))
    assert lines
    assert key == "method" or not re.search(r"\b(nan|None|True)\b", " ".join(lines))


def test_bars_before_and_after_are_adjacent():
    def row(fqn, seconds, before=None):
        share = TimeShare(0.5, 0.0, 0.5, 0.0)
        return LayerTime(fqn, KernelTime(seconds, share), before=KernelTime(before, share) if before else None)

    layers = (row("small", 1.0, 2.0), row("gone", 0.0, 9.0), row("alone", 4.0))
    found = times(Report(tensor_cores=TensorCores(True, layers=layers)))
    assert [bar["name"] for bar in found] == ["gone", "alone", "small"]
    assert found[2]["before"] == {"native": 1.0, "none": 1.0}
    assert found[2]["seconds"] == {"native": 0.5, "none": 0.5}


def test_reason_for_missing_kernels_is_stated_once():
    told = costs.tensor_cores(Report(tensor_cores=TensorCores(method="not measured: the driver refused it")))
    assert told == ["Use of Tensor Cores: not measured (the driver refused it)."]
