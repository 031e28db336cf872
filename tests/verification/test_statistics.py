import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from precaudit.verification.equivalence import LOOKS, equivalence, needs_more
from precaudit.verification.statistics import (
    LAST_LIMIT,
    MARGIN_CAP,
    MARGIN_FLOOR,
    NOISE_LIMIT,
    by_chance,
    comparison_window,
    diverged,
    horizon,
    last_margin,
    learned,
    margin,
    noise_floor,
    progress,
    relative_differences,
    seed_deviation,
    seeds_agree,
    typical_loss,
    wanders,
)

SIMULATE = runpy.run_path(str(Path(__file__).parents[1] / "calibration" / "simulate.py"))
characteristics = SIMULATE["characteristics"]

curves = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20)


def falling(steps=200, start=2.3, end=0.4, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    return end + (start - end) * np.exp(-np.arange(steps) / (steps / 5)) + rng.normal(0, noise, steps)


# ---------------------------------------------------------------- equivalence


def test_operating_characteristics_in_the_planning_case():
    margin_case, equal, double = (characteristics(mean, 0.5) for mean in (1.0, 0.0, 2.0))
    assert margin_case["pass"] <= 0.052  # 4.7% in 200,000 runs
    assert equal["pass"] >= 0.99
    assert equal["fail"] <= 0.001
    assert double["fail"] >= 0.99
    assert characteristics(-2.0, 0.5)["fail"] >= 0.99
    assert equal["seeds"] < 5.3


@pytest.mark.parametrize("deviation", [0.1, 0.7, 1.0, 2.0, 5.0, 20.0])
def test_noise_makes_a_verdict_inconclusive_but_not_wrong(deviation):
    assert characteristics(1.0, deviation)["pass"] <= 0.052
    assert characteristics(0.0, deviation)["fail"] <= 0.02
    assert characteristics(2.0, deviation)["pass"] <= 0.004


@given(st.lists(st.integers(-10_000, 10_000).map(lambda n: n * 1e-6), min_size=2, max_size=8, unique=True))
def test_bounds_are_those_of_the_t_interval(differences):
    result = equivalence(differences, margin=0.0025)
    low, high = stats.t.interval(0.96, len(differences) - 1, np.mean(differences), stats.sem(differences))
    assert (result.lower, result.upper) == pytest.approx((low, high), abs=1e-15)
    assert (result.decision == "pass") == (max(-low, high) < 0.0025)
    assert result.pairs == len(differences)


def test_both_directions_fail_and_pass_alike():
    worse, better = equivalence([0.1, 0.11, 0.12], 0.0025), equivalence([-0.1, -0.11, -0.12], 0.0025)
    assert worse.decision == better.decision == "fail"
    assert equivalence([0.0001, -0.0001, 0.0002], 0.0025).decision == "pass"


def test_without_spread_only_identity_passes():
    assert equivalence([0.0], 0.0025).decision == "pass"
    same = equivalence([0.0, 0.0, 0.0], 0.0025)
    assert (same.decision, same.mean, same.lower, same.upper, same.pairs) == ("pass", 0.0, 0.0, 0.0, 3)
    single, copies = equivalence([1e-6], 0.0025), equivalence([1e-6] * 5, 0.0025)
    assert single.decision == copies.decision == "inconclusive"
    assert single.lower is single.upper is copies.lower is None
    assert copies.pairs == 1
    assert "seed" in copies.detail


def test_pairs_that_cannot_be_compared():
    nothing = equivalence([], 0.0025)
    assert (nothing.decision, nothing.pairs) == ("inconclusive", 0)
    assert equivalence([math.nan, math.nan], 0.0025).mean is None
    assert equivalence([math.nan, 1e-5, 2e-5, 3e-5], 0.0025).pairs == 3
    lost = equivalence([1e-5, math.inf, math.nan], 0.0025)
    assert (lost.decision, lost.mean, lost.upper) == ("fail", math.inf, None)


def test_a_gross_fault_is_found_despite_its_scatter():
    uneven = [3.0, 9.5, 21.0]
    assert equivalence(uneven, 0.0025).decision == "inconclusive"
    assert equivalence(uneven, 0.0025, spread=0.02).decision == "fail"
    assert equivalence(uneven, 0.0025, spread=0.0).decision == "inconclusive"


def test_a_spread_between_seeds_does_not_reject_equal_plans():
    rng = np.random.default_rng(0)
    scale, runs = 0.03, 2000
    outcomes = []
    for _ in range(runs // 10):
        reference, candidate = rng.normal(1, scale, (2, 8))
        spread = math.sqrt(2) * reference.std(ddof=1)
        outcomes.append(equivalence(candidate - reference, 0.0025, spread=spread).decision)
    assert outcomes.count("fail") <= 0.05 * len(outcomes)
    assert outcomes.count("pass") == 0


def test_the_number_of_pairs_at_each_look():
    pairs, looks = 0, []
    while more := needs_more(pairs):
        pairs += more
        looks.append(pairs)
    assert tuple(looks) == LOOKS == (3, 5, 8)
    assert needs_more(4) == 1
    assert needs_more(9) == 0


# ---------------------------------------------------------------- scale and differences


def test_a_positive_loss_is_compared_relative_to_its_size():
    reference = [falling(seed=seed) for seed in range(4)]
    candidate = [1.01 * curve for curve in reference]
    assert relative_differences(reference, candidate, slice(100, 200)) == pytest.approx(np.full(4, 0.01), rel=1e-9)


def test_an_overfitted_batch_is_judged_by_the_range_of_its_loss():
    steps = np.arange(200)
    reference, candidate = 2.3 * np.exp(-steps / 15), 2.3 * np.exp(-steps / 14)
    late = slice(150, 200)
    assert reference[late].mean() / candidate[late].mean() > 1.5
    assert abs(relative_differences([reference], [candidate], late)[0]) < MARGIN_FLOOR


def test_a_loss_that_does_not_fall_is_a_large_difference():
    reference, stuck = falling(start=1.392, end=0.069, noise=0.001), np.full(200, 1.392)
    assert relative_differences([reference], [stuck], slice(150, 200))[0] > 5


def test_losses_that_cross_zero_have_a_scale():
    reference = np.linspace(5, -5, 101)
    window = slice(45, 56)
    assert abs(np.mean(reference[window])) < 1e-12
    assert typical_loss(reference, window) == pytest.approx(0.9)
    assert relative_differences([reference], [reference + 0.009], window)[0] == pytest.approx(0.01)
    assert relative_differences([-reference - 9], [-reference - 8.9], window)[0] > 0


def test_a_transient_spike_does_not_change_the_scale():
    reference = falling()
    spiked = reference.copy()
    spiked[20:23] = 1e6
    assert typical_loss(spiked, slice(150, 200)) == pytest.approx(typical_loss(reference, slice(150, 200)), rel=0.2)


def test_unequal_lengths_and_non_finite_losses():
    curve = falling(40)
    bad = curve.copy()
    bad[35] = math.nan
    window = slice(20, 40)
    assert relative_differences([curve], [curve[:30] * 1.1], window)[0] == pytest.approx(0.1)
    assert math.isnan(relative_differences([curve], [curve[:20]], window)[0])
    assert relative_differences([curve], [bad], window)[0] == math.inf
    assert math.isnan(relative_differences([bad], [curve], window)[0])
    assert relative_differences([bad], [bad], slice(0, 30))[0] == 0
    assert relative_differences([[0.0] * 4], [[0.0] * 4], slice(0, 4))[0] == 0
    assert math.isnan(relative_differences([[0.0] * 4], [[1.0] * 4], slice(0, 4))[0])


def test_margin_follows_the_seeds_between_floor_and_cap():
    window = slice(0, 10)
    assert margin([[1.0] * 10, [1.0] * 10, [1.0] * 10], window) == MARGIN_FLOOR
    assert margin([[1.0] * 10, [2.0] * 10], window) == MARGIN_CAP
    assert margin([[1.0] * 10], window) == MARGIN_CAP
    runs = [[1 - 0.001] * 10, [1.0] * 10, [1 + 0.001] * 10]
    assert seed_deviation(runs, window) == pytest.approx(0.001)
    assert margin(runs, window) == pytest.approx(0.001)
    assert margin(runs, window, noise=0.004) == 0.004
    assert margin(runs, window, noise=math.inf) == NOISE_LIMIT
    assert margin(runs, window, noise=math.nan) == pytest.approx(0.001)


def test_the_last_margin_is_the_noise_of_float32_up_to_a_quarter_of_the_seed_deviation():
    window = slice(0, 10)
    runs = [[1 - 0.08] * 10, [1.0] * 10, [1 + 0.08] * 10]
    assert last_margin(runs, window, 0.015) == 0.015
    assert last_margin(runs, window, 0.5) == pytest.approx(0.02)
    assert last_margin([[0.5] * 10, [1.0] * 10, [1.5] * 10], window, 0.5) == LAST_LIMIT
    assert last_margin(runs, window, 0.0) == last_margin(runs[:1], window, 0.5) == 0.0
    steep = [np.linspace(2, 1, 51)] * 3
    assert last_margin(steep, slice(25, 51), 0.0) == pytest.approx(progress(steep, slice(25, 51)))
    assert NOISE_LIMIT < last_margin(steep, slice(25, 51), 0.0) < LAST_LIMIT


@pytest.mark.parametrize(("shift", "passing"), [(0.0, (0.6, 0.95)), (0.02, (0.0, 0.2)), (0.03, (0.0, 0.03))])
def test_the_last_margin_passes_equal_plans_and_few_others(shift, passing):
    """Float32 differs from itself by 1.5%, a seed changes 12%."""
    rng, window, passed, wrong = np.random.default_rng(0), slice(0, 4), 0, 0
    for _ in range(300):
        ends = rng.normal(1, 0.12, 8) + rng.normal(0, 0.015 / math.sqrt(2), (3, 8)) + [[0], [0], [shift]]
        reference, twin, candidate = np.repeat(ends[:, :, None], 4, axis=2)
        allowed = last_margin(reference, window, by_chance(list(zip(reference, twin, strict=True))[:3], window, 1))
        decided = equivalence(relative_differences(reference, candidate, window), allowed).decision
        passed += decided == "pass"
        wrong += decided == "pass" and allowed <= shift
    assert passing[0] <= passed / 300 <= passing[1]
    assert wrong <= 0.03 * 300


# ---------------------------------------------------------------- horizon


def test_the_horizon_ends_where_the_twin_diverges():
    reference = np.full(100, 2.0)
    perturbed = reference + 1e-9 * np.exp(0.2 * np.arange(100))
    steps = horizon(reference, perturbed)
    assert np.abs(perturbed - reference)[:steps].max() <= MARGIN_FLOOR * 2 < np.abs(perturbed - reference)[steps]
    assert horizon(reference, reference) == 100
    assert horizon(reference, reference[:7]) == 7
    assert horizon(reference, np.where(np.arange(100) == 60, np.nan, reference)) == 60
    assert horizon([], []) == 0


def test_the_window_is_the_end_of_a_run_and_longer_where_pairs_diverge():
    assert comparison_window(100, 100) == slice(75, 100)
    assert comparison_window(100, 99) == slice(50, 100)
    for steps in range(1, 11):
        for reach in (0, steps):
            part = comparison_window(steps, reach)
            assert 0 <= part.start < part.stop == steps
    assert comparison_window(0, 0) == slice(0, 0)


def test_the_noise_floor_of_an_offset_and_of_independent_noise():
    reference = np.ones(400)
    window = slice(0, 400)
    assert noise_floor(reference, reference + 0.003, window) == pytest.approx(0.003)
    rng = np.random.default_rng(1)
    floors = [noise_floor(reference, reference + rng.normal(0, 0.1, 400), window) for _ in range(500)]
    deviation_of_the_mean = 0.1 / math.sqrt(400)
    assert math.sqrt(np.mean(np.square(floors))) == pytest.approx(2 * deviation_of_the_mean, rel=0.1)
    assert noise_floor(reference, reference, window) == 0
    assert noise_floor(reference, np.full(400, np.nan), window) == math.inf
    assert math.isnan(noise_floor([], [], window))
    assert noise_floor([1.0, 1.0], [1.0, 1.02], slice(1, 2)) == pytest.approx(0.02)


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize(
    "losses",
    [
        falling(),
        falling(8, noise=0.0),
        [2.3, 2.1, 1.9, 1.8, 1.75],
        np.linspace(1, 5, 50),  # a critic's loss that rises
        np.sin(np.linspace(0, math.pi, 60)) + np.random.default_rng(0).normal(0, 0.1, 60),  # up and down again
    ],
    ids=["noisy", "eight steps", "five steps", "rising", "up and down"],
)
def test_a_run_that_moves_has_learned(losses):
    guard = learned(losses)
    assert guard.passed
    assert "%" not in guard.detail  # from and to say how far


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([0.7] * 50, "every step"),
        ([2.3, 2.2, 2.1, 2.0], "4 steps"),
        ([2.3], "1 steps"),
        ([], "0 steps"),
        ([2.0, math.nan, 1.0, 0.5, 0.4, 0.3], "step 1"),
        (np.linspace(1, 0.999, 200), "moved by 0.08% of its final size, and more than 0.50%"),
        (np.random.default_rng(3).normal(2.3, 0.1, 200), "p ="),
    ],
)
def test_a_run_that_stands_still_proves_nothing(losses, why):
    guard = learned(losses)
    assert not guard.passed
    assert why in guard.detail


@pytest.mark.parametrize("steps", [5, 7, 8, 20, 100])
def test_noise_is_rarely_mistaken_for_learning(steps):
    rng = np.random.default_rng(0)
    taken = sum(learned(rng.normal(2.3, 0.2, steps)).passed for _ in range(400))
    assert taken <= 0.04 * 400


def test_divergence_names_the_step():
    reference = falling(50)
    lost = reference.copy()
    lost[17:] = math.nan
    assert diverged(reference, lost).step == 17
    exploded = reference.copy()
    exploded[30:] = 11 * np.abs(reference).max()
    assert diverged(reference, exploded).step == 30
    assert diverged(-reference, -exploded).step == 30
    assert diverged(reference, exploded[:40]).step == 30


def test_transient_spikes_are_not_divergence():
    reference = falling(50)
    spike = reference.copy()
    spike[20:25] = 1e4
    assert diverged(reference, spike) is None
    assert diverged(reference, reference * 9) is None
    lost = reference.copy()
    lost[17:] = math.nan
    assert diverged(lost, lost) is None
    assert diverged([], []) is None
    assert diverged([0.0] * 5, [1.0] * 5) is None


@given(curves, curves)
def test_arbitrary_curves_raise_no_exception(reference, candidate):
    steps = min(len(reference), len(candidate))
    window = comparison_window(steps, horizon(reference, candidate))
    differences = relative_differences([reference, reference], [candidate, candidate], window)
    limit = margin([reference, candidate], window, noise_floor(reference, candidate, window))
    assert MARGIN_FLOOR <= limit <= NOISE_LIMIT
    assert equivalence(differences, limit).decision in ("pass", "fail", "inconclusive")
    assert learned(reference).detail
    diverged(reference, candidate)


def test_several_curves_have_the_false_positive_rate_of_one():
    rng, passed = np.random.default_rng(0), {1: 0, 3: 0}
    for _ in range(300):
        noise = 2 + 0.05 * rng.standard_normal((3, 60))
        for curves in passed:
            passed[curves] += any(learned(row, curves=curves).passed for row in noise[:curves])
    assert passed[3] <= passed[1] + 6
    assert not learned(noise[0], curves=10**9).passed


def walk(rng, steps=60):
    return 1 + 0.01 * np.cumsum(rng.standard_normal(steps))


def correlated(rng, steps=60, memory=0.9):
    values = [0.0]
    for _ in range(steps):
        values.append(memory * values[-1] + rng.standard_normal())
    return np.array(values[1:])


@pytest.mark.parametrize("make", [walk, lambda rng: 1 + 0.05 * correlated(rng)], ids=["walk", "correlated"])
def test_seeds_must_agree_where_consecutive_losses_are_correlated(make):
    """Most such curves seem to have learned; where they did, as below a trend, seeds agree."""
    rng, seeming, taken, kept = np.random.default_rng(0), 0, 0, 0
    for _ in range(100):
        curves = [make(rng) for _ in range(3)]
        mean = np.mean(curves, axis=0)
        seeming += learned(mean).passed
        taken += learned(mean).passed and not (wanders(mean) and not seeds_agree(curves))
        falling_too = [curve + np.linspace(3, 0, 60) for curve in curves]
        kept += not wanders(np.mean(falling_too, axis=0)) or seeds_agree(falling_too)
    assert seeming > 80
    assert taken < 30
    assert kept > 97


def test_independent_losses_and_smooth_ones_do_not_wander():
    rng = np.random.default_rng(0)
    assert sum(wanders(rng.normal(2.3, 0.2, 60)) for _ in range(200)) < 10
    smooth = [np.exp(-np.arange(60) / 7), np.linspace(1, 0.2, 60), 1 / (1 + np.arange(60)), falling(60)]
    assert not any(wanders(curve) for curve in smooth)
    assert not any(wanders(curve) for curve in ([1.0, math.nan] * 10, [3.0, 2.0, 1.0]))


def test_identical_seeds_agree():
    assert seeds_agree([np.linspace(1, 0, 20)] * 3)
    assert not seeds_agree([np.ones(20)] * 3)


@pytest.mark.parametrize("seeds", [3, 8])
def test_random_walks_agree_as_often_as_the_level_says(seeds):
    """The six moves between quarters are correlated, so Bonferroni's bound is not quite reached."""
    rng, tries = np.random.default_rng(0), 2000
    agreed = sum(seeds_agree(np.cumsum(rng.standard_normal((seeds, 60)), axis=1)) for _ in range(tries))
    assert 0.03 < agreed / tries < 0.06


@pytest.mark.parametrize(("scatter", "agree"), [(0.15, True), (0.17, False)])
def test_agreement_of_seeds_is_the_t_test_of_their_moves_between_quarters(scatter, agree):
    """Three seeds that fall by 1 - scatter, 1 and 1 + scatter times one amount, all of it between two quarters."""
    falls = np.array([1 - scatter, 1, 1 + scatter])
    assert bool(stats.ttest_1samp(falls, 0.0).pvalue <= 0.05 / 6) is agree
    assert seeds_agree([np.repeat([fall, 0.0], [5, 15]) for fall in falls]) is agree


def test_by_chance_is_two_standard_errors_of_differences_between_float32_runs():
    """Twins that are 1% and 2% apart, either of them the one to compare with."""
    twins = [([1.0] * 8, [1.01] * 8), ([1.0] * 8, [1.02] * 8)]
    differences = [0.01, 0.02, 1 / 1.01 - 1, 1 / 1.02 - 1]
    assert by_chance(twins, slice(4, 8), 3) == pytest.approx(2 * np.sqrt(np.mean(np.square(differences)) / 3))


def test_progress_is_the_change_over_a_fiftieth_of_the_run():
    steps, window = 100, slice(75, 100)
    falling_line = np.linspace(3, 1, steps)
    expected = 0.02 * steps * (2 / (steps - 1)) / typical_loss(falling_line, window)
    assert progress([falling_line], window) == pytest.approx(expected)
