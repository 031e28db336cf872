import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.model import Exponents, Layer, LossScale, Plan, TensorRecord, TensorStats
from precaudit.planning.loss_scale import (
    K_LIMIT,
    LOST_BUDGET,
    best_compromise,
    conflicts,
    expected_skips,
    half_gradients,
    k_max,
    k_min,
    lost_energy,
    lost_share,
    needed_k,
    predicted_skips,
    recommend,
    recommended_interval,
    replay,
    scale_ranges,
    window,
)
from precaudit.planning.scaler import grad_scaler


def stats_of(values):
    values = np.abs(np.asarray(values, float).ravel())
    nonzero = values[values > 0]
    if not len(nonzero):
        return TensorStats(numel=len(values), zeros=len(values))
    exponents = np.frexp(nonzero)[1] - 1
    low = int(exponents.min())
    return TensorStats(
        numel=len(values),
        amax=float(nonzero.max()),
        amin_nonzero=float(nonzero.min()),
        sum_squares=float(np.square(nonzero).sum()),
        zeros=len(values) - len(nonzero),
        exponents=Exponents(low, tuple(int(n) for n in np.bincount(exponents - low))),
    )


def lost_in_half(values, k):
    """Brute force: what torch's float16 takes from values below its normal range, as a share of all energy."""
    scaled = torch.from_numpy(np.asarray(values, float)) * 2.0**k
    error = scaled - scaled.to(torch.float16).double()
    below = scaled.abs() < 2.0**-14
    return float((error[below] ** 2).sum() / (scaled**2).sum())


def gradients(spread=3.0, centre=-20.0, size=200_000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 1], size) * 2.0 ** rng.normal(centre, spread, size)


def half(log2_max, k):
    """Whether the largest gradient overflows at scale 2**k, by torch's cast."""
    return bool(torch.isinf(torch.tensor(2.0**log2_max * 2.0**k, dtype=torch.float64).to(torch.float16)))


# ---------------------------------------------------------------- energy and k_min


@pytest.mark.parametrize(("spread", "centre"), [(0.5, -20.0), (2.0, -25.0), (4.0, -30.0)])
def test_lost_energy_matches_torch_casts(spread, centre):
    values = gradients(spread, centre)
    for k in range(-10, 24, 2):
        truth = lost_in_half(values, k)
        assert lost_energy(stats_of(values), k) == pytest.approx(truth, rel=0.05 if truth < 0.01 else 0.3, abs=1e-7)


def test_lost_energy_of_gaussian_gradients():
    values = np.random.default_rng(0).normal(0, 2.0**-24, 200_000)
    for k in range(0, 12):
        assert lost_energy(stats_of(values), k) == pytest.approx(lost_in_half(values, k), rel=0.05, abs=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-60, 30), min_size=1, max_size=12), st.integers(-20, 40))
def test_lost_energy_falls_with_the_scale(exponents, k):
    tensor = stats_of([2.0**e for e in exponents])
    assert 0 <= lost_energy(tensor, k + 1) <= lost_energy(tensor, k) <= 1 + 1e-12
    assert lost_energy(tensor, k) == lost_energy(tensor.shift(k), 0)


@pytest.mark.parametrize("centre", [-40.0, -28.0, -10.0, 3.0])
def test_k_min_is_the_smallest_scale_within_the_budget_by_brute_force(centre):
    values = gradients(2.0, centre)
    by_cast = next(k for k in range(-60, 60) if lost_in_half(values, k) <= LOST_BUDGET)
    assert abs(k_min({"layer": [stats_of(values)]}) - by_cast) <= 1
    k = needed_k([stats_of(values)])
    assert lost_energy(stats_of(values), k) <= LOST_BUDGET < lost_energy(stats_of(values), k - 1)


def test_one_part_in_ten_thousand_of_the_energy_may_be_lost():
    """Rounding to the subnormal grid loses a variance of a twelfth of its square: 0.4 at -19, 1.5 at -20, 6 at -21."""
    binade = 2.0 ** np.random.default_rng(0).uniform(0, 1, 10_000)
    assert [needed_k([stats_of(binade * 2.0**exponent)]) for exponent in (-19, -20, -21)] == [0, 1, 2]


def test_k_min_is_the_largest_need_of_all_tensors():
    quiet, loud = stats_of(gradients(centre=-30.0)), stats_of(gradients(centre=-18.0))
    assert k_min({"a": [loud, quiet], "b": [loud]}) == needed_k([quiet]) == needed_k([loud]) + 12


def test_zero_gradients_need_no_scale():
    zero = stats_of(np.zeros(8))
    assert needed_k([zero]) is None
    assert needed_k([]) is None
    assert k_min({"a": [zero], "b": []}) is None
    assert lost_energy(zero, 0) == 0.0
    assert needed_k([zero, stats_of([2.0**-20])]) == needed_k([stats_of([2.0**-20])])


def test_rounding_residue_needs_no_scale():
    weight, residue = stats_of(gradients(centre=-14.0)), stats_of(gradients(centre=-45.0))
    assert needed_k([weight, residue]) == needed_k([weight])
    assert needed_k([residue]) > needed_k([weight]) + 25


# ---------------------------------------------------------------- k_max


def test_k_max_follows_the_formula():
    steady = np.random.default_rng(0).normal(-6.0, 0.5, 200)
    expected = max(steady.max(), steady.mean() + 3.09 * steady.std(ddof=1))
    assert k_max(steady) == math.floor(15 - expected)


@given(st.lists(st.floats(-30, 15), min_size=1, max_size=30))
def test_no_observed_step_overflows_at_k_max(history):
    k = k_max(history)
    assert not any(half(m, k) for m in history)
    assert abs(k) <= K_LIMIT


def test_trend_counts_with_its_last_value():
    rising = -10 + 0.01 * np.arange(100)
    assert k_max(rising) == 15 + 9
    assert k_max(rising[::-1]) == k_max(rising)


def test_a_falling_trend_shortens_the_interval():
    assert recommended_interval([-6.0] * 50, 0) == 2000
    assert recommended_interval(-6 - 0.001 * np.arange(50), 0) == pytest.approx(500, abs=1)
    assert recommended_interval(-6 - np.arange(50.0), 0) == 100
    assert recommended_interval(-6 + np.arange(50.0), 0) == 2000


@pytest.mark.parametrize(("room", "interval"), [(4, 100), (6, 2000)])
def test_a_fall_that_leaves_no_window_asks_for_no_doublings(room, interval):
    assert recommended_interval(-6 - 0.1 * np.arange(51), room) == interval


def looked_at(history, stride):
    return [largest if step % stride == 0 else -math.inf for step, largest in enumerate(history)]


@pytest.mark.parametrize("stride", [1, 8, 16])
def test_a_trend_is_told_in_steps_however_few_were_looked_at(stride):
    falling = -6 - 0.001 * np.arange(600)
    assert recommended_interval(looked_at(falling, stride), 0) == pytest.approx(500, abs=1)


def test_few_and_odd_steps():
    assert k_max([]) == k_max([-math.inf] * 5) == k_max([math.nan, math.inf]) == K_LIMIT
    assert k_max([-6.0]) == k_max([-6.0, -6.0]) == math.floor(15 + 6 - 3.09)
    assert k_max([-6.0, -6.0, -6.0]) == 21
    assert k_max([-6.0, -6.0, -6.0, -math.inf, math.inf]) == 21
    assert k_max([100.0] * 5) == -K_LIMIT


def test_the_range_of_a_module_is_that_of_its_smallest_and_largest_gradients():
    tensors = [stats_of(np.full(10, 2.0**e)) for e in (-10, -14, 3)]
    need = max(needed_k([tensor]) for tensor in tensors)
    assert scale_ranges({"a": tensors}, {}) == {"a": (need, 15 - 3)}
    assert scale_ranges({"a": tensors[::-1]}, {"a": 5.0, "b": 9.0}) == {"a": (need, 15 - 5)}
    assert scale_ranges({"a": [stats_of([0.0])]}, {}) == {}


def test_the_share_of_a_module_is_that_of_its_tensor_that_loses_most():
    """But for what rounding leaves of a gradient that is zero by construction."""
    small, large, residue = (stats_of(np.full(10, 2.0**e)) for e in (-30, -20, -60))
    assert lost_share([large, small], 0) == lost_energy(small, 0) == 1.0
    assert lost_share([large, small], 16) == lost_share([small], 16) == 0.0
    assert lost_share([large, residue], 16) == lost_share([], 0) == 0.0


# ---------------------------------------------------------------- what a scaler does


def run_scaler(log2_max, scaler, device="cpu"):
    """Skips and final scale of a real GradScaler whose gradients are float16 casts of the scaled maxima."""
    weight = torch.nn.Parameter(torch.zeros(1, device=device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    skips = 0
    for largest in log2_max:
        scale = scaler.scale(torch.ones(1, device=device)).item()
        scaled = torch.tensor([2.0**largest * scale], dtype=torch.float64, device=device)
        weight.grad = scaled.to(torch.float16).float()
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        skips += int(torch.equal(before, weight.detach()))
        weight.data.zero_()
    return skips, scaler.get_scale()


@pytest.mark.parametrize("init_k", [16, 24])
def test_replay_matches_torch(init_k):
    history = np.random.default_rng(init_k).normal(-3, 1.5, 300)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**init_k, growth_interval=7)
    skips, scale = run_scaler(history, scaler)
    result = replay(history, init_k, 7)
    assert (result.skips, 2.0**result.k) == (skips, scale)
    assert skips > 20


@given(st.integers(-10, 24), st.integers(-10, 24), st.integers(1, 9), st.integers(0, 200))
def test_predicted_skips_matches_a_replay_of_constant_gradients(init_k, fits, interval, steps):
    history = [15.5 - fits] * steps
    assert predicted_skips(init_k, fits, interval, steps) == replay(history, init_k, interval).skips


def test_replay_of_odd_steps():
    assert replay([-math.inf, -math.inf], 16, 2) == replay([-50.0, -50.0], 16, 2)
    assert replay([math.nan, math.inf], 16, 2000).skips == 2
    assert replay([], 16, 2000).k == 16


def test_expected_skips_go_on_beyond_the_history():
    history = [-0.5] * 40
    assert expected_skips(history, 20, 10, 25) == replay(history[:25], 20, 10).skips
    for steps in (41, 100, 400):
        assert expected_skips(history, 20, 10, steps) == replay([-0.5] * steps, 20, 10).skips
    assert expected_skips([], 16, 2000, 100) == 0


@pytest.mark.parametrize("steps", [50, 300, 1000])
def test_skips_are_those_of_all_steps_however_few_were_looked_at(steps):
    history = [-0.5] * 300
    assert expected_skips(looked_at(history, 16), 20, 10, steps) == expected_skips(history, 20, 10, steps)


# ---------------------------------------------------------------- settings


def test_recommendation_has_no_skips_and_keeps_the_energy():
    history = np.random.default_rng(0).normal(-4.0, 0.3, 60)
    grads = {"a": [stats_of(gradients(2.0, -22.0))], "b": [stats_of(gradients(2.0, -18.0))]}
    low, high = window(history, grads)
    dynamic = recommend(history, grads, steps=60)
    assert dynamic == LossScale("dynamic", 2.0 ** (high - 2), 2000, (low, high), 0.0)
    assert all(lost_energy(t, high - 2) <= LOST_BUDGET for tensors in grads.values() for t in tensors)


@pytest.mark.parametrize(("room", "below"), [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_a_scale_starts_below_the_largest_that_fits_where_the_window_has_room(room, below):
    """Other seeds reach higher, and a step that is skipped makes another training of what was paired with float32's."""
    tensor = stats_of([2.0**-24] * 10)
    low = needed_k([tensor])
    history = [15.0 - low - room - 0.5] * 10
    setting = recommend(history, {"a": [tensor]}, steps=10)
    assert setting.window == (low, low + room)
    assert setting.init_scale == 2.0 ** (low + room - below)
    assert replay([largest + below for largest in history], low + room - below, 2000).skips == 0


def test_a_window_may_be_a_single_scale():
    tensor = stats_of([2.0**-24] * 10)
    low = needed_k([tensor])
    setting = recommend([15.0 - low - 0.5] * 10, {"a": [tensor]}, steps=10)
    assert setting.window == (low, low)
    assert setting.init_scale == 2.0**low


def test_nothing_in_half_needs_no_scale():
    assert recommend([-3.0] * 5, {}, steps=10) == LossScale()


def test_conflicting_modules_and_the_best_compromise():
    ordinary = {f"layer{i}": [stats_of(gradients(1.5, -20.0, seed=i))] for i in range(4)}
    huge, tiny = stats_of(gradients(1.0, 12.0)), stats_of(gradients(1.0, -60.0))
    loud = {**ordinary, "loud": [huge]}
    history = [math.log2(huge.amax)] * 10
    assert window(history, loud) is None
    assert recommend(history, loud, steps=10).window is None
    assert set(conflicts(loud, k_max(history))) == set(ordinary)
    assert best_compromise(scale_ranges(loud, {}))[1] == ("loud",)
    assert best_compromise(scale_ranges({**ordinary, "quiet": [tiny]}, {}))[1] == ("quiet",)
    k, left = best_compromise(scale_ranges(ordinary, {}))
    assert left == () == tuple(conflicts(ordinary, k))
    assert best_compromise({}) == (K_LIMIT, ())


def test_a_gradient_inside_a_module_counts_for_it_alone():
    """What goes in and out of the module is ordinary; it divides by something tiny in between."""
    ordinary = {f"layer{i}": [stats_of(gradients(1.5, -20.0, seed=i))] for i in range(4)}
    ranges = scale_ranges(ordinary, {"layer2": 38.0})
    need, fits = ranges["layer2"]
    assert need > fits == 15 - 38
    assert best_compromise(ranges)[1] == ("layer2",)


def test_gradients_of_the_half_modules_only():
    def layer(fqn):
        grad, other = stats_of([1.0]), stats_of([2.0])
        roles = (("activation", other), ("activation_grad", grad), ("weight_grad", grad))
        return Layer(fqn, "Linear", 1, 1, tuple(TensorRecord(role, stats) for role, stats in roles))

    plan = Plan(default="float16", modules={"b": "bfloat16"})
    found = half_gradients([layer("a"), layer("b")], plan)
    assert found == {"a": (stats_of([1.0]), stats_of([1.0]))}


# ---------------------------------------------------------------- the scaler


def test_scaler_is_disabled_where_no_scale_is_needed():
    scaler = grad_scaler(Plan(), "cpu")
    assert not scaler.is_enabled()
    assert scaler.scale(torch.ones(1)).item() == 1.0


def test_dynamic_scaler_takes_the_settings():
    scaler = Plan(loss_scale=LossScale("dynamic", 2.0**11, 150)).grad_scaler("cpu")
    assert (scaler.get_scale(), scaler.get_growth_interval()) == (2.0**11, 150)
    skips, scale = run_scaler([6.0] * 3, scaler)
    assert (skips, scale) == (2, 2.0**9)
    defaults = grad_scaler(Plan(loss_scale=LossScale("dynamic")), "cpu")
    assert (defaults.get_scale(), defaults.get_growth_interval()) == (2.0**16, 2000)


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("k", [-5, 0, 13, 24])
def test_static_scaler_skips_overflows_and_never_moves(k, device):
    scaler = grad_scaler(Plan(loss_scale=LossScale("static", 2.0**k)), device)
    skips, scale = run_scaler([0.0 - k, 40.0, 0.0 - k, 40.0], scaler, device)
    assert (skips, scale) == (2, 2.0**k)
    assert scaler.get_growth_interval() > 10**9  # steps


def test_scaler_scales_on_this_machine_where_no_device_is_named():
    assert grad_scaler(Plan(loss_scale=LossScale("dynamic"))).is_enabled()
