"""The verdict from paired runs: lost, refused by a gate, shown equal, shown different, or not shown."""

import math
import signal
from dataclasses import replace

import numpy as np
import pytest
from run_samples import broken, ended, falling, run

from precaudit.model import Location, Plan
from precaudit.running.job import INTERNAL, ScriptError
from precaudit.verification.statistics import LAST_LIMIT, MARGIN_CAP, MARGIN_FLOOR, NOISE_LIMIT
from precaudit.verification.verdict import Runs, judge, screened

PLAN = Plan(default="bfloat16")


def runs(factor, seeds=5, twin=True, spread=0.0, **fields):
    """Float32 runs with a seed spread of a percent; candidates end a constant factor away, jittered by `spread`."""
    references = {i: run(falling(seed=i, end=1 + 0.01 * i), seed=i) for i in range(seeds)}
    candidates = {}
    for i, reference in references.items():
        shifted = tuple(loss * (1 + factor + spread * (-1) ** i) for loss in reference.losses)
        candidates[i] = run(shifted, "candidate-1", i, **fields)
    perturbed = run(tuple(loss * (1 + 1e-7) for loss in references[0].losses), "reference-perturbed", 0)
    return Runs(references, candidates, {0: perturbed} if twin else {})


def test_equal_losses_pass():
    judged = judge(runs(1e-5, spread=1e-5), PLAN)
    assert judged.verdict == "pass"
    assert judged.difference.mean == pytest.approx(1e-5, rel=0.3)
    assert judged.difference.lower < judged.difference.mean < judged.difference.upper < judged.margin
    assert MARGIN_FLOOR <= judged.margin <= MARGIN_CAP
    assert judged.horizon == 40
    assert [gate.name for gate in judged.gates][-1] == "the reference learned"


@pytest.mark.parametrize("factor", [0.02, -0.02])
def test_higher_and_lower_losses_fail(factor):
    judged = judge(runs(factor, spread=1e-4), PLAN)
    assert judged.verdict == "fail"
    assert judged.difference.mean == pytest.approx(factor, rel=0.05)


def test_a_difference_at_the_margin_is_inconclusive():
    assert judge(runs(MARGIN_CAP, spread=MARGIN_CAP), PLAN).verdict == "inconclusive"


def chaotic(rng, shift=0.0, chaos=0.015, seed=0.12, fall=3.0):
    """Runs that learn alike and end elsewhere: `seed` is the deviation between seeds, `chaos` that of two runs of one
    seed from each other, and `fall` how far they come down to one."""
    ends = rng.normal(1, seed, 8) + rng.normal(0, chaos / math.sqrt(2), (3, 8)) + [[0], [0], [shift]]
    labels = ("reference", "reference-perturbed", "candidate-1")
    noise = 0.003 * fall * rng.standard_normal(40)

    def curve(end):
        return tuple(float(x) for x in fall * np.exp(-np.arange(40) / 3) + end + noise)

    made = [{i: run(curve(ends[k, i]), labels[k], i) for i in range(8)} for k in range(3)]
    return Runs(made[0], made[2], {i: made[1][i] for i in range(3)})


def test_the_last_look_allows_what_float32_itself_does_not_repeat():
    pairs = chaotic(np.random.default_rng(0))
    early = judge(replace(pairs, candidates={i: pairs.candidates[i] for i in range(5)}), PLAN)
    assert (early.verdict, early.margin) == ("inconclusive", NOISE_LIMIT)
    last = judge(pairs, PLAN)
    assert last.verdict == "pass"
    assert NOISE_LIMIT < max(-last.difference.lower, last.difference.upper) < last.margin <= LAST_LIMIT
    assert judge(replace(pairs, twins={}), PLAN).verdict == "inconclusive"  # float32 may repeat better
    assert judge(chaotic(np.random.default_rng(0), seed=0.02), PLAN).verdict == "inconclusive"


def test_the_last_margin_is_limited_by_what_float32_learned():
    judged = judge(chaotic(np.random.default_rng(0), fall=0.08), PLAN)
    assert (judged.verdict, judged.cause) == ("inconclusive", "noise")
    assert judged.margin < 0.005
    assert "a tenth of what float32 learned" in judged.reason


def test_a_difference_outside_the_usual_margin_fails_at_the_last_look_too():
    judged = judge(chaotic(np.random.default_rng(10), shift=0.025), PLAN)
    assert (judged.verdict, judged.margin) == ("fail", NOISE_LIMIT)
    assert judged.difference.lower < judge(chaotic(np.random.default_rng(10)), PLAN).margin


def test_too_few_seeds_decide_nothing():
    assert judge(runs(1e-4, seeds=1), PLAN).verdict == "inconclusive"


@pytest.mark.parametrize("seeds", [1, 8])
def test_bit_identical_runs_prove_nothing(seeds):
    """Rounding that is in force shows in some bit: such a plan was not in force."""
    judged = judge(runs(0.0, seeds=seeds), PLAN)
    assert judged.verdict == screened(judged).verdict == "inconclusive"
    assert "changed nothing" in judged.reason


def test_gradients_without_a_step_are_no_training():
    idle = {label: run((), label, 0) for label in ("reference", "candidate-1")}
    judged = judge(Runs({0: idle["reference"]}, {0: idle["candidate-1"]}), PLAN)
    assert (judged.verdict, judged.cause, judged.settled) == ("inconclusive", "float32", True)
    assert judged.reason == "no optimizer step was taken, so there is no training to compare"


def test_a_plan_that_stopped_rounding_before_the_compared_steps_proves_nothing():
    """Such as for a first model, where the second one's forward is called by its name."""
    pairs = runs(0.0)
    early = {i: replace(each, losses=(4.0, *each.losses[1:])) for i, each in pairs.candidates.items()}
    judged = judge(replace(pairs, candidates=early), PLAN)
    assert (judged.verdict, judged.cause) == ("inconclusive", "unchanged")


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_a_loss_at_its_floor_is_compared_with_float32s_floor(floor):
    references = {i: run((*falling(seed=i, end=1 + 0.01 * i)[:20], *[floor] * 20), seed=i) for i in range(3)}
    candidates = {i: replace(each, losses=(4.0, *each.losses[1:])) for i, each in references.items()}
    assert judge(Runs(references, candidates), PLAN).verdict == "pass"


def test_a_candidate_that_raised_fails_with_its_message():
    references = {0: run(falling())}
    judged = judge(Runs(references, {0: broken(falling()[:7], "expected Half")}), PLAN)
    assert (judged.verdict, judged.cause) == ("fail", "raised")
    assert judged.reason == "the script stopped at step 7: expected Half"


def test_the_line_that_raised_is_told():
    """Outside of every module, as in an optimizer that decomposes a matrix, nothing else names it."""
    raised = broken(falling()[:7], "no eigh for Half")
    raised = replace(raised, error=replace(raised.error, location=Location("train.py", 25)))
    judged = judge(Runs({0: run(falling())}, {0: raised}), PLAN)
    assert judged.reason == "the script stopped at step 7 at train.py:25: no eigh for Half"


def test_an_internal_failure_of_precaudit_decides_nothing():
    pairs = runs(1e-5, spread=1e-5)
    failed = replace(pairs.candidates[1], status="killed", error=ScriptError(INTERNAL, "precaudit itself failed", ""))
    judged = judge(Runs(pairs.references, {**pairs.candidates, 1: failed}, pairs.twins), PLAN)
    assert (judged.verdict, judged.cause, judged.reason) == ("inconclusive", "interrupted", "precaudit itself failed")


def test_a_float32_run_that_stopped_decides_nothing():
    """Its steps before that would be compared, and the candidate's end never seen."""
    pairs = runs(1e-5, spread=1e-5)
    references = {**pairs.references, 1: replace(broken(falling()[:7], "out of data"), label="reference", seed=1)}
    judged = judge(Runs(references, pairs.candidates, pairs.twins), PLAN)
    assert (judged.verdict, judged.cause) == ("inconclusive", "float32")
    assert judged.reason == "float32 itself stopped at step 7 with seed 1: out of data"


@pytest.mark.parametrize(("steps", "verdict"), [(10, "fail"), (35, "inconclusive"), (36, "pass")])
def test_an_early_end_under_the_plan_is_inconclusive(steps, verdict):
    """It breaks off where its loss is lost, which its losses don't show."""
    pairs = runs(1e-5, spread=1e-5)
    ended = replace(pairs.candidates[1], status="ended", steps=steps, losses=pairs.candidates[1].losses[:steps])
    judged = judge(Runs(pairs.references, {**pairs.candidates, 1: ended}, pairs.twins), PLAN)
    assert (judged.verdict, judged.cause) == (verdict, "early" if verdict == "inconclusive" else None)
    assert judged.settled is (verdict == "inconclusive"), "more seeds leave this run as it is"
    told = f"the script ended by itself at step {steps}, in float32 not before 40"
    assert (judged.reason == told) is (verdict != "pass")


def test_scattered_runs_report_noise_even_if_one_ends_early():
    """An agent that solves its task a little earlier: what could decide is told by the scatter, not by that run."""
    pairs = runs(0.0, spread=0.1)
    ended = replace(pairs.candidates[1], status="ended", steps=35, losses=pairs.candidates[1].losses[:35])
    judged = judge(Runs(pairs.references, {**pairs.candidates, 1: ended}, pairs.twins), PLAN)
    assert (judged.verdict, judged.cause) == ("inconclusive", "noise")
    assert judged.difference.upper > 10 * judged.margin


def test_a_nonfinite_loss_fails_and_names_its_step():
    good = falling()
    lost = (*good[:10], math.nan, *good[11:])
    judged = judge(Runs({0: run(good)}, {0: run(lost, "candidate-1")}), PLAN)
    assert judged.verdict == "fail"
    assert "step 10" in judged.reason


def test_a_failed_gate_fails_the_plan_whatever_its_loss():
    judged = judge(runs(0.0, end_state=ended(buffers=("bn.running_var",))), PLAN)
    assert judged.verdict == "fail"
    assert judged.reason == "non-finite buffers: bn.running_var"


def test_a_reference_that_learned_nothing_proves_nothing():
    flat = {i: run((1.0,) * 40, seed=i) for i in range(3)}
    judged = judge(Runs(flat, {i: run((1 + i * 1e-6,) * 40, "candidate-1", i) for i in flat}), PLAN)
    assert judged.verdict == "inconclusive"
    assert "proves nothing" in judged.reason
    assert not judged.gates[-1].passed


@pytest.mark.parametrize(("farthest", "verdict"), [(2e-5, "inconclusive"), (2e-3, "pass")])
def test_a_loss_that_moves_without_its_weights_proves_nothing(farthest, verdict):
    given = runs(1e-5, spread=1e-5)
    still = {i: replace(each, end_state=ended(farthest=farthest)) for i, each in given.references.items()}
    judged = judge(replace(given, references=still), PLAN)
    assert judged.verdict == verdict
    assert judged.settled is (verdict == "inconclusive")
    assert ("no weight moved by more than 2e-05" in judged.reason) is judged.settled


def two_losses(first, second, small=1.0):
    """Float32 runs of two losses, and candidates whose losses are these factors apart from them."""

    def made(label, seed, one, other):
        rng = np.random.default_rng(seed + 100 * (label != "reference"))
        curves = [
            np.asarray(falling(seed=seed, end=1 + 0.01 * seed)) * (1 + factor) * (1 + 1e-4 * rng.standard_normal(40))
            for factor in (one, other)
        ]
        streams = {"gan.py:10": tuple(curves[0]), "gan.py:20": tuple(small * curves[1])}
        mean = tuple((curves[0] + small * curves[1]) / 2)
        return run(mean, label, seed, streams=streams)

    references = {seed: made("reference", seed, 0, 0) for seed in range(3)}
    candidates = {seed: made("candidate-1", seed, first, second) for seed in range(3)}
    return Runs(references, candidates, {0: made("reference-perturbed", 0, 0, 0)})


def test_gains_in_one_loss_do_not_offset_another():
    judged = judge(two_losses(0.08, -0.08), PLAN)
    assert judged.verdict == "fail"
    assert judged.reason.startswith("of its losses, the one of gan.py:10: +7.99")
    assert judged.difference.lower > judged.margin


def test_a_small_loss_is_not_hidden_by_a_large_one():
    judged = judge(two_losses(0.0, 0.4, small=1e-3), PLAN)
    assert (judged.verdict, "gan.py:20" in judged.reason) == ("fail", True)


@pytest.mark.parametrize(("factors", "verdict"), [((0.3, 0.05, 0.8), "inconclusive"), ((0.002, -0.002, 0.001), "pass")])
def test_a_small_loss_that_no_seed_repeats_is_not_verified_far_from_float32(factors, verdict):
    """Its seeds end so far apart that no three pairs could decide on it; float32 twins stay together."""

    def made(label, seed, factor):
        small = 3.0**seed * np.asarray(falling(seed=seed)) * (1 + factor)
        streams = {"a.py:1": tuple(falling(seed=seed, end=1 + 0.01 * seed)), "a.py:2": tuple(1e-6 * small)}
        return run(tuple(map(sum, zip(*streams.values(), strict=True))), label, seed, streams=streams)

    references = {seed: made("reference", seed, 0) for seed in range(3)}
    candidates = {seed: made("candidate-1", seed, factor) for seed, factor in enumerate(factors)}
    twins = {seed: made("reference-perturbed", seed, 0.001 * (-1) ** seed) for seed in range(3)}
    judged = judge(Runs(references, candidates, twins), PLAN)
    assert (judged.verdict, "a.py:2" in judged.reason) == (verdict, verdict != "pass")


def test_several_equal_losses_pass():
    assert judge(two_losses(0.0, 0.0, small=1e-3), PLAN).verdict == "pass"


def test_one_learning_stream_of_several_is_enough():
    flat = (1.0,) * 40

    def of(label, end):
        streams = {"gan.py:10": flat, "gan.py:20": falling(end=end)}
        return {seed: run((end * (1 + seed * 1e-6),) * 40, label, seed, streams=streams) for seed in range(3)}

    judged = judge(Runs(of("reference", 1), of("candidate-1", 1 + 1e-5)), PLAN)
    assert judged.verdict == "pass"
    assert judged.gates[-1].passed


@pytest.mark.parametrize(("lost", "verdict"), [(0.03, "pass"), (0.04, "inconclusive"), (0.7, "fail")])
def test_a_constant_in_the_loss_does_not_hide_lost_learning(lost, verdict):
    """With 300 on top of it, even 0.05% of the loss are a large share of what it came down by after its start. From
    quarter to quarter it moves by a third of that, a tenth of which may be lost."""

    def of(label, kept):
        curves = {seed: np.asarray(falling(seed=seed)) for seed in range(5)}
        noise = {seed: 1e-5 * (-1) ** seed for seed in curves}
        return {
            seed: run(tuple(300 + curve[0] + (curve - curve[0]) * (kept + noise[seed])), label, seed)
            for seed, curve in curves.items()
        }

    judged = judge(Runs(of("reference", 1.0), of("candidate-1", 1 - lost)), PLAN)
    assert judged.verdict == verdict
    assert ("a tenth of what float32 learned is" in judged.reason) is (verdict != "fail")
    if verdict == "inconclusive":
        assert judged.margin < judged.difference.lower < judged.difference.upper < MARGIN_FLOOR
        assert screened(judged).verdict == "inconclusive"


def test_unrepeatable_float32_runs_widen_the_margin():
    sure = runs(1e-4, spread=1e-5)
    noisy = Runs(
        sure.references,
        sure.candidates,
        {0: run(tuple(loss * 1.003 for loss in sure.references[0].losses), "reference-perturbed", 0)},
    )
    assert judge(noisy, PLAN).margin == pytest.approx(0.006, rel=0.05)
    assert judge(noisy, PLAN).horizon == 0
    assert judge(sure, PLAN).margin < 0.003


def test_candidates_without_a_reference_are_ignored():
    both = runs(1e-6, seeds=2)
    alone = Runs({0: both.references[0]}, both.candidates)
    assert len(alone.pairs) == 1
    assert judge(alone, PLAN).difference == judge(runs(1e-6, seeds=1, twin=False), PLAN).difference


def test_runs_without_a_loss_decide_nothing():
    assert judge(Runs({0: run(())}, {0: run((), "candidate-1")}), PLAN).verdict in ("inconclusive", "fail")


@pytest.mark.parametrize("label", ["reference", "candidate-1"])
def test_a_run_killed_from_outside_is_inconclusive(label):
    why = ScriptError("ProcessDied", "the script's process was killed by SIGKILL after step 3", "")
    killed = run(falling()[:3], label, status="killed", exit_code=-signal.SIGKILL, error=why)
    pair = {"reference": run(falling()), "candidate-1": run(falling(), "candidate-1")} | {label: killed}
    judged = judge(Runs({0: pair["reference"]}, {0: pair["candidate-1"]}), PLAN)
    assert (judged.verdict, judged.cause, judged.reason) == ("inconclusive", "interrupted", why.message)
    assert screened(judged) == judged
    crashed = replace(pair["candidate-1"], status="killed", exit_code=-signal.SIGSEGV, error=why)
    assert judge(Runs({0: run(falling())}, {0: crashed}), PLAN).verdict == "fail"


@pytest.mark.parametrize("label", ["reference", "candidate-1"])
def test_a_run_without_memory_is_inconclusive(label):
    pair = {"reference": run(falling()), "candidate-1": run(falling(), "candidate-1")}
    error = ScriptError("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "")
    pair[label] = replace(pair[label], losses=falling()[:3], status="failed", error=error)
    judged = judge(Runs({0: pair["reference"]}, {0: pair["candidate-1"]}), PLAN)
    assert (judged.verdict, judged.cause, judged.settled) == ("inconclusive", "interrupted", True)
    assert judged.reason == error.message


def test_a_plan_for_which_cudnn_has_no_engine_fails():
    """That may have been memory; a run has been repeated alone then."""
    error = ScriptError("RuntimeError", "GET was unable to find an engine to execute this computation", "")
    lost = run(falling()[:3], "candidate-1", status="failed", error=error)
    assert judge(Runs({0: run(falling())}, {0: lost}), PLAN).verdict == "fail"


# ---------------------------------------------------------------- one pair


@pytest.mark.parametrize(("factor", "expected"), [(1e-6, "screened"), (1e-4, "screened"), (0.01, "inconclusive")])
def test_one_pair_screens_but_never_verifies(factor, expected):
    judged = screened(judge(runs(factor, seeds=1, twin=False), PLAN))
    assert judged.verdict == expected
    assert "one pair" in judged.reason


def test_one_pair_that_learned_nothing_is_inconclusive():
    flat = tuple(1 + 0.01 * (-1) ** i for i in range(40))
    judged = judge(Runs({0: run(flat)}, {0: run(tuple(loss * 1.0001 for loss in flat), "candidate-1")}), PLAN)
    assert (judged.settled, screened(judged).verdict, screened(judged).cause) == (True, "screened", "float32")
    assert "float32 run proves nothing" in screened(judged).reason
    other = judge(Runs({0: run(flat)}, {0: run(tuple(loss * 1.1 for loss in flat), "candidate-1")}), PLAN)
    assert (screened(other).verdict, screened(other).cause) == ("inconclusive", "float32")  # more seeds won't tell


def test_one_pair_with_a_nonfinite_reference_screens_no_plan():
    lost = (*np.linspace(1, 0.5, 30).tolist(), *[math.nan] * 10)
    judged = judge(Runs({0: run(lost)}, {0: run(tuple(loss * 1.0001 for loss in lost), "candidate-1")}), PLAN)
    assert (screened(judged).verdict, screened(judged).cause) == ("inconclusive", "float32")


def test_one_pair_whose_learning_is_hidden_by_noise_is_inconclusive():
    """The mean of eight seeds may show it."""
    noisy = tuple(np.linspace(1.1, 1.0, 40) + np.random.default_rng(0).normal(0, 0.1, 40))
    judged = judge(Runs({0: run(noisy)}, {0: run(tuple(loss * 1.0001 for loss in noisy), "candidate-1")}), PLAN)
    assert (judged.cause, judged.settled, screened(judged).verdict) == ("float32", False, "screened")
    assert "float32 run proves nothing" in screened(judged).reason


def test_screening_keeps_a_failure():
    judged = judge(Runs({0: run(falling())}, {0: broken(falling()[:3])}), PLAN)
    assert screened(judged) == judged


def test_float32_runs_are_averaged_over_their_common_steps():
    judged = runs(1e-5, spread=1e-5)
    judged.references[1] = replace(judged.references[1], losses=judged.references[1].losses[:-5])
    assert judge(judged, PLAN).verdict == "pass"


def test_autocorrelated_losses_have_learned_where_seeds_agree():
    """A random walk's seem to move as well; more seeds may tell."""
    walks = [1 + 0.01 * np.cumsum(np.random.default_rng(seed).standard_normal(60)) for seed in range(3)]
    trained = [walk + np.linspace(1, 0, 60) for walk in walks]
    for curves, learned in ((walks, False), (trained, True)):
        references = {i: run(tuple(curve), seed=i) for i, curve in enumerate(curves)}
        candidates = {i: run(tuple(curve * (1 + 1e-5 * i + 1e-6)), "candidate-1", i) for i, curve in enumerate(curves)}
        judged = judge(Runs(references, candidates, {}), PLAN)
        assert (judged.verdict == "pass") is learned
        assert ("each seed's loss wanders in its own way" in judged.reason) is not learned
        assert not judged.settled
