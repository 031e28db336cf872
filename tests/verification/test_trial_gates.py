"""What a loss curve doesn't show: each gate on both sides."""

import pytest
from run_samples import ended, falling, run

from precaudit.model import LossScale, Plan
from precaudit.running.job import OutputDeviation, ScriptError
from precaudit.verification.gates import failed, first_lost, gates, refusals, unused_calls, usual_calls

LOSSES = falling()
PLAN = Plan(default="bfloat16")


def results(candidate=None, reference=None, plan=PLAN):
    """The gates that failed, by name, and their details."""
    pair = (run(LOSSES, **(reference or {})), run(LOSSES, "candidate-1", **(candidate or {})))
    return {gate.name: gate.detail for gate in failed(gates([pair], plan))}


def test_a_clean_pair_passes_all_gates():
    pair = (run(LOSSES), run(LOSSES, "candidate-1"))
    assert failed(gates([pair], PLAN)) == []
    assert len(gates([pair], PLAN)) == 10


def test_without_pairs_there_is_nothing_to_check():
    assert gates([], PLAN) == ()


@pytest.mark.parametrize(
    ("field", "name", "word"),
    [
        ("parameters", "finite parameters", "parameters"),
        ("buffers", "finite buffers", "buffers"),
        ("optimizer_state", "finite optimizer state", "optimizer states"),
    ],
)
def test_state_that_is_not_finite(field, name, word):
    bad = ended(**{field: ("b", "a", "d", "c", "e")})
    assert results({"end_state": bad}) == {name: f"non-finite {word}: a, b, c and 2 more"}
    assert results({"end_state": bad}, {"end_state": bad}) == {}
    assert results({}, {"end_state": bad}) == {}


def test_values_that_are_not_finite_in_float32_either_pass_and_are_mentioned():
    bad = ended(parameters=("a",), evaluations={"net": (False, 0.0)}, deviations={"net": OutputDeviation(0.0, 0.0)})
    pair = (run(LOSSES, end_state=bad), run(LOSSES, "candidate-1", end_state=bad))
    details = {gate.name: gate.detail for gate in gates([pair], PLAN)}
    assert details["finite parameters"] == "non-finite parameters, but in float32 as well: a"
    assert details["evaluation"] == "non-finite outputs in eval mode, but in float32 as well: net"


@pytest.mark.parametrize(
    ("usual", "calls", "unused"),
    [
        ((1,) * 40, (1,) * 30 + (2,) * 5, True),  # batches left out, each followed by one that leads to a step
        ((1,) * 40, (1,) * 30 + (6,), True),  # several in a row
        ((1,) * 40, (1,) * 30 + (2,) * 4, False),  # as few as steps may be skipped
        ((3, 2) * 20, (2, 3) * 15 + (6, 5, 6), True),  # a discriminator's and a generator's
        ((4,) * 9 + (2,), (4,) * 12 + (2,), False),  # accumulation, less of it at the end of an epoch
        ((7, 9, 8, 12, 10, 9), (11, 13, 14, 15, 13, 14), False),  # a solver looks for its own way
        ((50, 44, 38, 44), (62, 68, 62, 68), False),  # in a few steps
    ],
)
def test_batches_that_a_script_skips_fail_a_gate(usual, calls, unused):
    assert ("batches" in results({"calls": calls}, {"calls": usual})) is unused
    pair = (run(LOSSES, calls=usual), run(LOSSES, "candidate-1", calls=calls))
    told = {gate.name: gate.detail for gate in gates([pair], PLAN)}["batches"]
    assert told.startswith("not looked at") is (len(set(usual)) > min(4, len(usual) / 2))


@pytest.mark.parametrize(
    ("calls", "busier"),
    [
        ([62, 900, 880, 910, 905, 70], True),  # an adaptive solver's: its steps shrink until rounding is no error
        ([62, 120, 118, 130, 60, 66], False),  # what twice the work costs may be gained back
        ([62, 60, 70, 910, 905, 64], False),  # some steps alone
    ],
)
def test_steps_that_call_the_models_many_times_as_often_fail_a_gate(calls, busier):
    usual = {"calls": (62, 50, 44, 56, 60, 58)}
    told = results({"calls": tuple(calls)}, usual).get("batches", "")
    assert told.startswith("most steps call the models 14 times as often") is busier
    assert bool(told) is busier


def test_one_run_that_calls_the_models_as_usual_passes():
    usual, often = (62, 50, 44, 56, 60, 58), (900,) * 6
    pairs = [(run(LOSSES, calls=usual), run(LOSSES, "candidate-1", calls=each)) for each in (often, usual)]
    assert failed(gates(pairs, PLAN)) == []


def test_calls_in_excess_of_the_usual_are_unused_unless_they_vary():
    assert unused_calls((2, 3, 5, 1, 4), {2, 3}) == [0, 0, 2, 0, 1]
    varied = usual_calls([run(LOSSES, calls=(1, 2, 3, 6, 7) * 9)])
    assert unused_calls((2, 3, 5, 1, 4), varied) == [0] * 5


def test_an_early_end_of_the_script_fails_a_gate():
    def ending(*steps):
        return [(run(LOSSES, seed=i), run(LOSSES[:each], "candidate-1", i)) for i, each in enumerate(steps)]

    (gate,) = failed(gates(ending(40, 19), PLAN))
    assert gate.detail == "the script ended by itself at step 19, in float32 not before 40"
    assert failed(gates(ending(40, 20), PLAN)) == []


def test_gates_check_every_seed():
    pairs = [(run(LOSSES, seed=i), run(LOSSES, "candidate-1", i)) for i in range(2)]
    pairs.append((run(LOSSES, seed=2), run(LOSSES, "candidate-1", 2, end_state=ended(buffers=("running_var",)))))
    assert [gate.name for gate in failed(gates(pairs, PLAN))] == ["finite buffers"]


@pytest.mark.parametrize(
    ("plain", "planned", "stuck"),
    [
        ([1.0, 1.0], [0.4, 0.1], True),
        ([1.0, 1.0], [0.4, 0.6], False),  # in one run it went far enough
        ([1.0, 0.3], [0.4, 0.4], False),  # float32 itself goes far at times only
        ([0.0, 0.0], [0.0, 0.0], False),
        ([1.0, 1.0], [2.0, 2.0], False),
        ([1.0], [0.4], False),  # a ResNet with batch normalization at too high a learning rate, where chance does it
        ([1.0], [0.05], True),
    ],
)
def test_a_buffer_that_stops_moving_fails_a_gate(plain, planned, stuck):
    runs = [[run(LOSSES, end_state=ended(moved={"q.n": far})) for far in ways] for ways in (plain, planned)]
    pairs = list(zip(*runs, strict=True))
    assert [gate.detail for gate in failed(gates(pairs, PLAN))] == (
        ["moved less than half as far as in float32: q.n"] if stuck else []
    )


def test_nonfinite_outputs_during_training_fail_a_gate():
    lost = ended(lost={"net outside of training": 9})
    assert results({"end_state": lost}) == {"finite outputs": "non-finite outputs: net outside of training"}
    assert results({"end_state": lost}, {"end_state": lost}) == {}
    assert results({}, {"end_state": lost}) == {}


def test_the_first_step_whose_output_is_lost_under_the_plan_only():
    several = run((1.0,), end_state=ended(lost={"a": 3, "b": 9, "c": 5}))
    assert first_lost(run((1.0,), end_state=ended(lost={"a": 2})), several) == 5
    assert first_lost(several, several) is None


@pytest.mark.parametrize(
    ("error", "chance", "wrong"),
    [(0.17, 0.0004, True), (0.17, 0.02, False), (0.05, 0.0001, False), (0.07, 0.0, True)],
)
def test_outputs_in_eval_mode_that_deviate_from_float32_fail_a_gate(error, chance, wrong):
    end = ended(evaluations={"net": (True, 1.0)}, deviations={"net": OutputDeviation(error, chance)})
    detail = (
        f"in eval mode an output of net is off by {error:.1%} of its rms; "
        f"weights that are rounded once change it by {chance:.2%} in float32"
    )
    assert results({"end_state": end}) == ({"evaluation": detail} if wrong else {})


@pytest.mark.parametrize("worst", ["a", "b", "c"])
def test_the_model_that_is_farthest_off_is_told(worst):
    deviations = {name: OutputDeviation(0.8 if name == worst else 0.5, 0.0) for name in "abc"}
    end = ended(evaluations=dict.fromkeys("abc", (True, 1.0)), deviations=deviations)
    assert results({"end_state": end})["evaluation"].startswith(f"in eval mode an output of {worst} is off by 80.0%")


def test_outputs_that_were_not_checked_are_not_called_finite():
    (gate,) = (gate for gate in gates([(run(LOSSES), run(LOSSES, "candidate-1"))], PLAN) if gate.name == "evaluation")
    assert gate.passed
    assert gate.detail.startswith("not looked at")


def test_nonfinite_outputs_in_eval_mode_fail_a_gate():
    alike = {"net": OutputDeviation(0.0, 0.0)}
    bad, good = (ended(evaluations={"net": found}, deviations=alike) for found in ((False, 0.0), (True, 1.0)))
    assert results({"end_state": bad}, {"end_state": good}) == {"evaluation": "non-finite outputs in eval mode: net"}
    assert results({"end_state": bad}) == {"evaluation": "non-finite outputs in eval mode: net"}
    assert results({"end_state": bad}, {"end_state": bad}) == {}
    assert results({"end_state": good}, {"end_state": bad}) == {}


def test_outputs_that_were_not_compared_are_not_called_equal():
    pair = (run(LOSSES), run(LOSSES, "candidate-1", end_state=ended(evaluations={"net": (True, 1.0)})))
    (gate,) = (gate for gate in gates([pair], PLAN) if gate.name == "evaluation")
    assert gate.passed
    assert gate.detail.endswith("not compared with float32, as calls take too long or differ: net")


def test_a_model_that_raises_in_eval_mode_under_the_plan_only_fails_a_gate():
    error = ScriptError("RuntimeError", "not implemented for 'BFloat16'\nmore", "")
    refused, answered = ended(refused={"net": error}), ended(evaluations={"net": (True, 1.0)})
    detail = "in eval mode net raises, which it does not in float32: not implemented for 'BFloat16'"
    assert results({"end_state": refused}, {"end_state": answered}) == {"evaluation": detail}
    assert results({"end_state": refused}, {"end_state": refused}) == {}


def test_an_evaluation_without_memory_is_mentioned_and_hides_no_other_failure():
    memory, error = (ScriptError(kind, "out", "") for kind in ("OutOfMemoryError", "ValueError"))
    answered = ended(evaluations=dict.fromkeys(("a", "b"), (True, 1.0)))

    def evaluated(**state):
        end = ended(deviations={"b": OutputDeviation(0.0, 0.0)}, **state)
        pair = (run(LOSSES, end_state=answered), run(LOSSES, "candidate-1", end_state=end))
        return next((g.passed, g.detail) for g in gates([pair], PLAN) if g.name == "evaluation")

    unseen = "not looked at, as memory ran out: a"
    finite = evaluated(refused={"a": memory}, evaluations={"b": (True, 1.0)})
    assert finite == (True, f"all outputs in eval mode are finite; {unseen}")
    lost = evaluated(refused={"a": memory}, evaluations={"b": (False, 1.0)})
    assert lost == (False, f"non-finite outputs in eval mode: b; {unseen}")
    assert not evaluated(refused={"a": memory, "b": error})[0]
    lacking = run(LOSSES, "candidate-1", end_state=ended(refused={"a": memory, "b": error}))
    assert list(refusals([(run(LOSSES, end_state=answered), lacking)])) == [("b", error)]  # nothing to repair


@pytest.mark.parametrize(
    ("skips", "predicted", "passes"),
    [(0, 0.0, True), (4, 0.0, True), (5, 0.0, False), (9, 5.0, True), (10, 5.0, False)],
)
def test_skipped_steps(skips, predicted, passes):
    plan = Plan(default="float16", loss_scale=LossScale("dynamic", 2.0**10, 2000, (0, 10), predicted))
    found = results({"skipped": tuple(range(skips))}, plan=plan)
    assert found == ({} if passes else {"skipped steps": f"{skips} of 40 steps skipped, {predicted:.1f} predicted"})


@pytest.mark.parametrize(
    ("scales", "passes"),
    [
        ((2.0**10, 2.0**16), True),
        ((2.0**10, 2.0**-11), False),
        ((2.0**31,), False),
        ((2.0**33, 2.0**34, 2.0**33, 2.0**34), True),  # it overflows at 2^34: the gradients are that small
        ((2.0**16, 2.0**15, 2.0**33, 2.0**34), False),
        ((1.0,), True),
        ((), True),
    ],
)
def test_the_loss_scale_stays_within_its_bounds(scales, passes):
    found = results({"scales": scales})
    assert bool(found) is not passes
    if not passes:
        assert "ran away" in found["loss scale"]


@pytest.mark.parametrize(("lowest", "passes"), [(2.0**-13, True), (2.0**-18, True), (2.0**-24, False)])
def test_an_initial_loss_scale_below_one_lowers_the_floor(lowest, passes):
    plan = Plan(default="float16", loss_scale=LossScale("dynamic", 2.0**-13, 2000, (-20, -13), 0.0))
    assert (results({"scales": (2.0**-13, lowest)}, plan=plan) == {}) is passes
