"""Whether a plan's loss scale serves the gradients of this data."""

import pytest
from checked import Net, answer, batches, check, check_trained, check_training, plan, rules

from precaudit.model import LossScale
from precaudit.running.model_file import train


def scaled(mode="dynamic", k=10, interval=2000):
    return plan("float16", loss_scale=LossScale(mode, None if mode == "none" else 2.0**k, interval))


def checked(wanted, size=1.0):
    """`Net` trains on a loss of this size, which its gradients have too."""
    return check_trained(wanted, lambda model, x: size * model(x).square().mean(), batches())


@pytest.mark.parametrize("setting", [scaled(), scaled("static"), scaled("none")])
def test_ordinary_gradients_pass(setting):
    report = checked(setting)
    assert report.passed
    assert answer(report, "loss scale").status == "passed"


@pytest.mark.parametrize(
    ("setting", "size", "rule", "status"),
    [
        (scaled("none"), 2.0**-20, "PA751", "failed"),
        (scaled("static", 4), 2.0**-24, "PA751", "failed"),
        (scaled("dynamic", 4), 2.0**-24, "PA751", "warned"),
        (scaled("none"), 2.0**18, "PA752", "failed"),
        (scaled("static", 16), 2.0**3, "PA752", "failed"),
        (scaled("dynamic", 16), 2.0**12, "PA752", "warned"),
    ],
)
def test_a_scale_that_does_not_suit_the_gradients(setting, size, rule, status):
    report = checked(setting, size)
    assert answer(report, "loss scale").status == status
    assert rule in rules(report)


def test_a_scaler_may_come_down_a_few_steps():
    assert answer(checked(scaled("dynamic", 18)), "loss scale").status == "passed"


def test_gradients_that_no_single_scale_suits():
    def loss(model, x):
        hidden, out = model.norm(model.hidden(x)), model.out
        return 2.0**14 * hidden.square().mean() + 2.0**-30 * out(hidden.detach()).square().mean()

    report = check_trained(scaled(), loss, batches())
    assert answer(report, "loss scale").status == "failed"
    assert "PA753" in rules(report)


def test_no_loss_scale_answer_for_bfloat16_and_inference():
    without = [checked(plan()), check(scaled())]
    assert all("loss scale" not in {a.question for a in report.answers} for report in without)


def test_float16_without_a_scale_is_checked_with_torchs_default():
    functions = {"build_model": Net, "batches": batches, "loss": lambda model, x: model(x).square().mean()}
    report = check_training(plan(), lambda: train(functions, "cpu"), formats=("float16",))
    assert "initial loss scale of 2^16" in answer(report, "loss scale").detail
