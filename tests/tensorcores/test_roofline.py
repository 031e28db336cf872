"""Predictions against arithmetic by hand, and the directions they must move in."""

from dataclasses import replace

import pytest

from precaudit.hardware.peaks import get_gpu
from precaudit.model import Layer, Op, Plan, TensorRecord, TensorStats
from precaudit.tensorcores.shapes.roofline import LAUNCH, METHOD, in_words, measured_in_words, predict_step

H100, V100 = get_gpu("h100"), get_gpu("v100")
BF16 = Plan(default="bfloat16")


def record(role, numel):
    return TensorRecord(role, TensorStats(numel=numel))


def trained(numel):
    """The records of an op to which a gradient comes back."""
    return record("activation", numel), record("activation_grad", numel)


def linear(size, calls=1):
    shapes = ((size, size), (size, size))
    return Op("fc", "linear", calls, "lower", None, trained(size * size * calls), None, shapes, half=True)


def layer(parameters, steps=1, states=2):
    roles = ["weight", "weight_grad", *["optimizer_state"] * states]
    return Layer("fc", "Linear", parameters, steps, tuple(record(role, parameters * steps) for role in roles))


def test_a_large_product_takes_three_passes_at_the_peak_of_its_format():
    op = linear(16384)
    for plan, rate in ((Plan(), 67), (Plan(default="tf32"), 494.5), (BF16, 989.5), (Plan("float8_e4m3"), 1979)):
        assert predict_step([op], [], plan, H100).seconds_matmul == pytest.approx(3 * 2 * 16384**3 / (rate * 1e12))


def test_a_misaligned_layer_in_a_float8_region_takes_the_time_of_bfloat16():
    odd = replace(linear(16384), shapes=((16384, 16383), (16384, 16383)))
    float8, half = (predict_step([odd], [], plan, H100).seconds_matmul for plan in (Plan("float8_e4m3"), BF16))
    assert float8 == half == pytest.approx(3 * 2 * 16384**2 * 16383 / 989.5e12)


def test_a_thin_product_takes_the_time_of_its_memory_traffic():
    op = Op("fc", "linear", 1, "lower", None, trained(2 * 64), None, ((2, 4096), (64, 4096)), half=True)
    traffic = 3 * 2 * (2 * 4096 + 64 * 4096 + 2 * 64)
    assert predict_step([op], [], BF16, H100).seconds_matmul == pytest.approx(traffic / 3350e9)


def test_elementwise_work_halves_in_half_precision_only_where_autocast_stores_half():
    stored = Op("act", "gelu", 1, "other", None, trained(10**9), None, ((10**9,),), half=True)
    kept = replace(stored, op="softmax", category="fp32", half=False)
    wide, narrow = (predict_step([stored], [], plan, H100).seconds_bandwidth for plan in (Plan(), BF16))
    assert wide == pytest.approx(3 * 2e9 * 4 / 3350e9)
    assert narrow == pytest.approx(wide / 2)
    assert predict_step([kept], [], BF16, H100).seconds_bandwidth == pytest.approx(wide)


def test_operations_without_a_gradient_take_only_their_forward_pass():
    op = linear(8192)
    frozen = replace(op, tensors=op.tensors[:1])
    half = replace(op, tensors=(op.tensors[0], record("activation_grad", 8192 * 8192 // 2)))
    small = linear(8, calls=100)
    parts = "seconds_matmul", "seconds_launch"
    for part, each in zip(parts, (op, small), strict=True):
        whole, alone = (
            getattr(predict_step([one], [], BF16, H100), part)
            for one in (each, replace(each, tensors=each.tensors[:1]))
        )
        assert whole == pytest.approx(3 * alone)
    forward, shared, both = (predict_step([one], [], BF16, H100).seconds_matmul for one in (frozen, half, op))
    assert (shared, both) == (pytest.approx(2 * forward), pytest.approx(3 * forward))
    act = Op("act", "gelu", 1, "other", None, trained(10**9), None, ((10**9,),), half=True)
    there, back = (predict_step([one], [], BF16, H100) for one in (replace(act, tensors=act.tensors[:1]), act))
    assert back.seconds_bandwidth == pytest.approx(3 * there.seconds_bandwidth)


def test_optimizer_and_casts():
    adam = predict_step([linear(8)], [layer(10**8)], BF16, H100)
    assert adam.seconds_bandwidth == pytest.approx(4 * (2 + 1 + 2 * 2) * 1e8 / 3350e9)
    assert adam.seconds_cast == pytest.approx(12e8 / 3350e9)
    assert predict_step([linear(8)], [layer(10**8)], Plan(), H100).seconds_cast == 0.0


def test_small_operations_are_bound_by_launches():
    found = predict_step([linear(8, calls=100)], [], Plan(), H100)
    assert found.total == found.seconds_launch == pytest.approx(300 * LAUNCH)


def test_more_audited_steps_predict_the_same_step():
    one = predict_step([linear(512)], [layer(512 * 512)], BF16, H100)
    ten = predict_step([linear(512, calls=10)], [layer(512 * 512, steps=10)], BF16, H100, steps=10)
    assert vars(ten) == pytest.approx(vars(one))


def total(size, plan, card):
    return predict_step([linear(size)], [], plan, card).total


def test_large_products_gain_the_ratio_of_the_peaks():
    assert total(16384, Plan(), H100) / total(16384, BF16, H100) == pytest.approx(989.5 / 67)
    assert total(16384, Plan("tf32"), H100) / total(16384, BF16, H100) == pytest.approx(989.5 / 494.5)


def test_no_gain_where_launches_decide_or_the_card_lacks_the_format():
    assert total(8, Plan(), H100) <= total(8, BF16, H100)
    assert total(16384, Plan(), V100) == pytest.approx(total(16384, BF16, V100))


def test_the_bound_of_a_step():
    assert predict_step([linear(8, calls=100)], [], Plan(), H100).bound == "launch"
    assert predict_step([linear(16384)], [], Plan(), H100).bound == "arithmetic"
    moved = Op("act", "gelu", 1, "other", None, trained(10**9), None, ((10**9,),), half=True)
    assert predict_step([moved], [], Plan(), H100).bound == "memory"


def test_a_prediction_is_not_called_measured():
    large, small = ([predict_step([linear(size)], [], plan, H100) for plan in (Plan(), BF16)] for size in (16384, 8))
    assert "not measured" in METHOD
    assert in_words(*large, H100).startswith("14.77x the speed of float32 expected on H100")
    assert METHOD in in_words(*large, H100)
    assert in_words(*small, H100).startswith("No gain expected over float32 on H100: starting its many small kernels")
    assert METHOD in in_words(*small, H100)
    assert "no prediction" in in_words(predict_step([], [], Plan(), H100), predict_step([], [], BF16, H100), H100)


def test_a_measured_speedup_in_words():
    fast = measured_in_words(1.634, [1.6, 1.66], 0.9, H100)
    assert fast == (
        "1.63x the speed of float32 measured on H100, 1.60x to 1.66x in the middle half of the rounds: the same "
        "training in 39% less time."
    )
    idle = measured_in_words(1.01, None, 0.2, H100)
    assert idle.startswith("No sure gain over float32 measured on H100 (1.01x).")
    assert "works 20% of a step and waits for the host" in idle
    assert "host" not in measured_in_words(1.01, None, None, H100)
