"""The least change that answers what a trial ran into."""

from dataclasses import replace

import pytest

from precaudit.model import Difference, Layer, Location, Op, OpFormat, Plan, Repair
from precaudit.profiling import repairs
from precaudit.profiling.audit import Audit
from precaudit.profiling.bisect import Contribution
from precaudit.profiling.repairs import (
    _after_exception,
    _after_fault,
    _after_silent_error,
    _after_stuck,
    _after_wrong_answer,
    _explains,
    _first_wrong,
    find_repair,
)
from precaudit.profiling.trials import Trials
from precaudit.running.job import Job, OutputDeviation, RunResult, RunSpec, ScriptError
from precaudit.tracing.records import Fault, Trace
from precaudit.verification.verdict import Judgement

TRACE = Trace(
    layers=(Layer("block", "Block", 0, 1, (), leaf=False), Layer("block.lin", "Linear", 8, 1, ())),
    ops=(
        Op("block", "mul", 1, "other", None, ()),
        Op("block", "matmul", 1, "lower", None, ()),
        Op("block.lin", "linear", 1, "lower", None, ()),
    ),
)
PLAN = Plan("float16", {"block": "float16", "block.lin": "float16", "other": "bfloat16"})


def fault(fqn, op, phase="forward"):
    return Fault(3, phase, fqn, "model", op, 7, 300.0, Location("train.py", 12))


def raised(fqn, op, message="boom"):
    return ScriptError("RuntimeError", message, message, Location("train.py", 9), op, raised_in=f"model:{fqn}")


def test_an_operation_between_children_moves_alone():
    (found,) = _after_fault(PLAN, [fault("block", "mul")], TRACE)
    assert (found.fqn, found.op, found.source, found.target) == ("block", "mul", "float16", "float32")
    assert found.why == "mul made 7 non-finite values from inputs up to 300 at step 3 at train.py:12"
    assert found.location == Location("train.py", 12)


@pytest.mark.parametrize(("fqn", "op"), [("block", "matmul"), ("block.lin", "linear")])
def test_a_product_moves_to_the_next_safer_format(fqn, op):
    (found,) = _after_fault(PLAN, [fault(fqn, op)], TRACE)
    assert (found.op, found.target) == ("matmul" if fqn == "block" else None, "bfloat16")


@pytest.mark.parametrize(
    ("op", "wide", "moved"),
    [
        ("to", (), ["b"]),
        ("to", ("a",), ["b", "c", "d"]),
        ("matmul", ("a",), ["b"]),
    ],
)
def test_a_second_failing_module_moves_all_modules_of_its_type(op, wide, moved):
    """One a round, a fourth block would have been one too many."""
    layers = [Layer(fqn, "Scan", 0, 1, (), leaf=False) for fqn in "abcd"]
    layers += [Layer("teacher", "Scan", 0, 1, (), leaf=False, trained=False), Layer("e", "Head", 0, 1, (), leaf=False)]
    trace = Trace(tuple(layers), tuple(Op(layer.fqn, "matmul", 1, "lower", None, ()) for layer in layers))
    exceptions = tuple(OpFormat(fqn, op, "float32") for fqn in wide)
    plan = Plan("float16", dict.fromkeys("abcde", "float16"), exceptions)
    found = _after_fault(plan, [fault("b", op)], trace)
    assert [each.fqn for each in found] == moved
    assert {(each.op, each.target) for each in found} == {(op, "float32")}


@pytest.mark.parametrize(
    ("name", "in_place", "moved"),
    [("mul", False, "mul"), ("mul", True, None), ("index_add", True, "index_add"), ("linear", False, None)],
)
def test_beside_products_of_a_leaf_an_operation_moves_alone_unless_it_writes_in_place(name, in_place, moved):
    """A tensor that another operation has stored in half stays half."""
    ops = [Op("a", "linear", 1, "lower", None, ()), Op("a", "mul", 1, "other", None, (), in_place=in_place)]
    ops.append(Op("a", "index_add", 1, "other", None, (), in_place=in_place))
    trace = Trace((Layer("a", "Graph", 8, 1, ()),), tuple(ops))
    plan = Plan("float16", {"a": "float16"})
    (found,) = _after_fault(plan, [fault("a", name)], trace)
    assert (found.fqn, found.op) == ("a", moved)
    if moved:
        (found,) = _after_fault(replace(plan, ops=(OpFormat("a", name, "float32"),)), [fault("a", name)], trace)
        assert (found.fqn, found.op) == ("a", None)


def test_a_wide_operation_widens_its_module_and_then_the_modules_inside():
    plan = Plan("float16", PLAN.modules, (OpFormat("block", "mul", "float32"),))
    (own,) = _after_fault(plan, [fault("block", "mul")], TRACE)
    assert (own.fqn, own.op, own.target) == ("block", None, "float32")
    (inside,) = _after_fault(Plan("float16", {**PLAN.modules, "block": "float32"}), [fault("block", "mul")], TRACE)
    assert (inside.fqn, inside.op, inside.target) == ("block.lin", None, "float32")


def test_an_operation_that_autocast_runs_in_float32_is_no_repair():
    trace = replace(TRACE, ops=(*TRACE.ops, Op("block", "log", 1, "fp32", None, ())))
    (own,) = _after_fault(PLAN, [fault("block", "log")], trace)
    assert (own.fqn, own.op, own.target) == ("block", None, "float32")


def test_the_module_of_a_stuck_buffer_is_widened():
    found = _after_stuck(PLAN, ["block.mean", "block.var", "net.other.mean", "elsewhere.mean"])
    assert [(each.fqn, each.source, each.target) for each in found] == [
        ("block", "float16", "float32"),
        ("other", "bfloat16", "float32"),
    ]
    assert found[0].why == "its buffer mean moves less than half as far as in float32"
    assert not _after_stuck(Plan("float16", {"block": "float32"}), ["block.mean"])


def test_modules_that_make_an_output_wrong_are_widened():
    (found,) = _after_wrong_answer(PLAN, "net", OutputDeviation(0.17, 0.001, ("block",)))
    assert (found.fqn, found.source, found.target) == ("block", "float16", "float32")
    assert found.why == "in float16 it makes the outputs of net wrong by 17.0% in eval mode"
    both = _after_wrong_answer(PLAN, "net", OutputDeviation(0.17, 0.001, ("block", "other")))
    assert [each.fqn for each in both] == ["block", "other"]
    assert both[1].why == "in bfloat16 it makes the outputs of net wrong by 17.0% in eval mode, with 1 other"
    assert not _after_wrong_answer(Plan("float16", {"": "float16"}), "net", OutputDeviation(0.17, 0.001))


def test_a_float32_producer_leaves_the_next_one():
    plan = Plan("float16", {**PLAN.modules, "block": "float32"})
    (found,) = _after_fault(plan, [fault("block", "mul"), fault("block.lin", "linear")], TRACE)
    assert (found.fqn, found.target) == ("block.lin", "bfloat16")
    everything = Plan("float16", {"block": "float32", "block.lin": "float32"})
    assert _after_fault(everything, [fault("block", "mul")], TRACE) == []


def test_forward_producers_come_before_gradients():
    (found,) = _after_fault(PLAN, [fault("block", "mul", "backward"), fault("block.lin", "linear")], TRACE)
    assert found.fqn == "block.lin"
    (alone,) = _after_fault(PLAN, [fault("block", "mul", "backward")], TRACE)
    assert alone.why.startswith("mul sent back a gradient of 7 non-finite values")
    (given,) = _after_fault(PLAN, [fault("block", "mul", "given")], TRACE)
    assert given.why.startswith("mul was given a gradient of 7 non-finite values")


def test_the_operation_that_raised_runs_in_float32():
    (found,) = _after_exception(PLAN, raised("block", "index_add", "same dtype expected\nmore"), TRACE)
    why = "index_add raised under the plan: same dtype expected"
    assert found == Repair("block", "float16", "float32", why, "index_add", location=Location("train.py", 9))


def test_without_an_operation_the_module_that_raised_is_widened():
    (found,) = _after_exception(PLAN, raised("block.lin", None), TRACE)
    assert (found.fqn, found.op, found.target) == ("block.lin", None, "float32")
    assert _after_exception(PLAN, ScriptError("", "the script stopped", ""), TRACE) == []


class Repeating:
    """A runner whose runs all end with the same error."""

    def __init__(self, error):
        self.error, self.specs = error, []

    def many(self, specs):
        self.specs += specs
        return [RunResult(spec.label, spec.seed, "failed", 5, error=self.error) for spec in specs]


@pytest.mark.parametrize(
    ("execution", "again", "op"),
    [
        ("native", raised("block", "mul"), "mul"),
        ("native", raised("block.lin", "mul"), None),
        ("native", None, None),
        ("emulated", raised("block", "mul"), None),
    ],
)
def test_a_native_run_that_raised_is_repeated_for_the_name_of_the_operation(execution, again, op):
    reference = RunResult("reference", 0, "stopped", 10)
    audit = Audit(Job("script", "train.py", (), ".", 10), reference, TRACE, execution=execution)
    runner = Repeating(again)
    candidates = {3: RunResult("candidate-1", 3, "failed", 5, error=raised("block", None))}
    found = find_repair(Trials(audit, runner, {3: reference}), PLAN, candidates)
    assert (found[0].fqn, found[0].op) == ("block", op)
    watched = [(spec.label, spec.seed, spec.watch_from) for spec in runner.specs]
    assert watched == ([("watch", 3, 5)] if execution == "native" else [])


@pytest.mark.parametrize(
    ("norm", "other", "moved"),
    [
        ("float16", "float32", ["block.norm"]),
        ("float32", "float32", ["block.lin"]),
        ("float16", "float16", ["block.norm", "block.lin"]),
    ],
)
def test_the_modules_inside_keep_their_products_while_no_other_ones_are_low(norm, other, moved):
    """A norm inside rounds its result to one, and an acosh outside fails on it: with the products in float32 too no
    plan would be left to verify."""
    formats = {"block": "float32", "block.norm": norm, "block.lin": "float16", "other": other}
    layers = (*TRACE.layers, Layer("block.norm", "Norm", 0, 1, ()), Layer("other", "Linear", 8, 1, ()))
    ops = (*TRACE.ops, Op("block.norm", "mul", 1, "other", None, ()), Op("other", "linear", 1, "lower", None, ()))
    found = _after_fault(Plan("float16", formats), [fault("block", "mul")], Trace(layers, ops))
    assert [(each.fqn, each.target) for each in found] == [(fqn, "float32") for fqn in moved]


def test_a_module_that_raised_is_widened_with_the_modules_inside():
    plan = Plan("float16", {**PLAN.modules, "blocks": "float16"})
    found = _after_exception(plan, raised("block", None), TRACE)
    assert [each.fqn for each in found] == ["block", "block.lin"]
    assert {each.target for each in found} == {"float32"}
    root = _after_exception(plan, raised("", None), TRACE)
    assert [(each.fqn, each.source) for each in root][1:] == list(plan.modules.items())


def test_all_modules_of_the_type_that_raised_are_widened_at_once():
    names = ("a", "b", "other")
    trace = Trace(
        layers=tuple(Layer(f, "Other" if f == "other" else "Mix", 0, 1, (), leaf=False) for f in names),
        ops=tuple(Op(f, "index_add", 1, "other", None, ()) for f in names),
    )
    plan = Plan("bfloat16", dict.fromkeys(names, "bfloat16"))
    found = _after_exception(plan, raised("a", "index_add"), trace)
    assert [(each.fqn, each.op, each.target) for each in found] == [
        ("a", "index_add", "float32"),
        ("b", "index_add", "float32"),
    ]
    assert found[1].why == "it has the same type as a, where index_add raised under the plan: boom"


def test_an_untrained_copy_needs_no_repair():
    """A quantized copy, say, that a script makes in order to look how good it is."""
    layers = (Layer("a", "FakeQuantize", 0, 1, ()), Layer("copy", "FakeQuantize", 0, 1, (), trained=False))
    ops = tuple(Op(layer.fqn, "fake_quantize", 1, "other", None, ()) for layer in layers)
    found = _after_exception(Plan("float16", {"a": "float16"}), raised("a", "fake_quantize"), Trace(layers, ops))
    assert [each.fqn for each in found] == ["a"]


def test_what_raised_in_leaves_of_a_type_is_widened_beside_their_products():
    """And with them, where it raises again."""
    ops = [Op(fqn, op, 1, kind, None, ()) for fqn in "ab" for op, kind in (("matmul", "lower"), ("index_add", "other"))]
    trace = Trace(layers=tuple(Layer(fqn, "Conv", 8, 1, ()) for fqn in "ab"), ops=tuple(ops))
    plan = Plan("bfloat16", dict.fromkeys("ab", "bfloat16"))
    for op in ("index_add", None):
        found = _after_exception(plan, raised("a", "index_add"), trace)
        assert [(each.fqn, each.op, each.target) for each in found] == [("a", op, "float32"), ("b", op, "float32")]
        plan = replace(plan, ops=tuple(OpFormat(fqn, "index_add", "float32") for fqn in "ab"))


@pytest.mark.parametrize(("op", "parts"), [("matmul", 1), (None, 2)])
def test_a_second_module_that_raises_widens_all_modules_of_its_type(op, parts):
    blocks = ("block", "second", "third", "fourth")
    layers = [Layer(name, "Block", 0, 1, (), leaf=False) for name in blocks]
    layers += [Layer(f"{name}.lin", "Linear", 8, 1, ()) for name in blocks]
    ops = tuple(Op(name, "matmul", 1, "lower", None, ()) for name in blocks)
    trace, plan = Trace(tuple(layers), ops), Plan("float16", {layer.fqn: "float16" for layer in layers})
    first = _after_exception(plan, raised("block", op), trace)
    assert [each.fqn for each in first] == ["block", "block.lin"][:parts]
    again = replace(plan, because={"block": first[0].why})
    found = _after_exception(again, raised("second", op), trace)
    assert {each.fqn for each in found} == {f"{name}{part}" for name in blocks for part in ("", ".lin")[:parts]}


def test_products_of_the_type_that_raised_stay_low():
    trace = replace(TRACE, layers=(*TRACE.layers, Layer("other", "Linear", 8, 1, ())))
    trace = replace(trace, ops=(*trace.ops, Op("other", "linear", 1, "lower", None, ())))
    for op in (None, "linear"):
        assert [each.fqn for each in _after_exception(PLAN, raised("block.lin", op), trace)] == ["block.lin"]


def test_a_wide_operation_that_raises_widens_what_feeds_it_and_then_everything():
    ops = (Op("net", "linear", 1, "lower", None, ()), Op("gram", "matmul", 1, "lower", None, ()))
    trace = Trace(ops=(*ops, Op("", "cholesky", 1, "other", None, ()), Op("head", "linear", 1, "lower", None, ())))
    plan = Plan("bfloat16", dict.fromkeys(("", "net", "gram", "head"), "bfloat16"))
    plan = replace(plan, ops=(OpFormat("", "cholesky", "float32"),))
    own, feeder = _after_exception(plan, raised("", "cholesky", "no"), trace)
    assert (own.fqn, own.op, feeder.fqn, feeder.target) == ("", None, "gram", "float32")
    assert feeder.why == "it ran last before cholesky raised under the plan: no"
    plan = replace(plan, modules={**plan.modules, "": "float32", "gram": "float32"}, ops=())
    assert [each.fqn for each in _after_exception(plan, raised("", "cholesky"), trace)] == ["net", "head"]


def test_a_leaf_that_raised_moves_alone_before_what_feeds_it():
    trace = replace(TRACE, ops=(*TRACE.ops, Op("qr", "linalg_qr", 1, "other", None, ())))
    trace = replace(trace, layers=(*TRACE.layers, Layer("qr", "Orthogonal", 0, 1, ())))
    plan = replace(PLAN, modules={**PLAN.modules, "qr": "float16"})
    for expected in ("qr", "block.lin"):
        (found,) = _after_exception(plan, raised("qr", "linalg_qr"), trace)
        assert (found.fqn, found.op, found.target) == (expected, None, "float32")
        plan = replace(plan, modules={**plan.modules, expected: "float32"})
    assert _after_exception(plan, raised("qr", "linalg_qr"), trace) == []


def test_the_failed_run_is_repeated():
    falling = tuple(1.0 / (step + 1) for step in range(20))

    def ran(seed, losses=falling, **fields):
        return RunResult("candidate-1", seed, "stopped", len(losses), losses=losses, **fields)

    references = {seed: ran(seed) for seed in range(3)}
    lost = (*falling[:7], *[float("nan")] * 13)
    assert _first_wrong(references, {0: ran(0), 1: ran(1, lost), 2: ran(2)}) == (1, 7)
    assert _first_wrong(references, {0: ran(0, skipped=(3,)), 1: ran(1, skipped=(1, 12)), 2: ran(2)}) == (1, 12)
    one = {seed: ran(seed, calls=(1,) * 20) for seed in range(3)}
    assert _first_wrong(one, {0: ran(0, calls=(1,) * 20), 1: ran(1, calls=(1,) * 9 + (3,) * 11)}) == (1, 9)
    silent = replace(ran(0).end_state, lost={"model": 11, "critic": 5})
    assert _first_wrong(references, {0: ran(0), 1: ran(1, end_state=silent)}) == (1, 5)
    bad = replace(ran(0).end_state, buffers=("mean",))
    assert _first_wrong(references, {0: ran(0, end_state=bad), 1: ran(1)}) == (0, 19)
    assert _first_wrong(references, {0: ran(0), 1: ran(1)}) is None
    assert _first_wrong({**references, 0: ran(0, end_state=bad)}, {0: ran(0, end_state=bad), 1: ran(1)}) is None


@pytest.mark.parametrize(
    ("shift", "difference", "expected"),
    [(-0.03, -0.029, True), (0.03, -0.029, False), (-0.01, -0.029, False), (0.0, 0.0, False), (0.03, None, False)],
)
def test_a_shift_of_the_loss_before_training_explains_a_difference(shift, difference, expected):
    assert _explains(shift, difference) is expected


@pytest.mark.parametrize(("formats", "target"), [(("bfloat16", "tf32"), "tf32"), (("bfloat16",), "float32")])
def test_a_guilty_product_moves_to_tf32_before_float32(monkeypatch, formats, target):
    """Straight to float32 the last low module was gone, and tf32 never tried."""
    job, run = Job("script", "train.py", (), ".", 10), RunResult("reference", 0, "stopped", 10, losses=(1.0,) * 10)
    spec = RunSpec(job, "replay", formats=formats)
    place = Location("train.py", 12)
    trace = replace(TRACE, ops=tuple(replace(op, places={"bfloat16": place}) for op in TRACE.ops))
    audit = Audit(job, run, trace, replay=run, replay_spec=spec)
    found = [Contribution("block.lin", 0.04), Contribution("other", 0.02)]
    monkeypatch.setattr(repairs, "contributions", lambda *_: found)
    monkeypatch.setattr(repairs, "whole_error", lambda *_: 0.0)
    plan = Plan("bfloat16", {"block.lin": "bfloat16", "other": "bfloat16"})
    promotions = _after_silent_error(Trials(audit, lambda spec: run, {0: run}), plan, {0: run})
    assert [(each.fqn, each.target) for each in promotions] == [("block.lin", target), ("other", "float32")]
    assert promotions[0].why.endswith("the most of all modules, from its linear")
    assert [each.location for each in promotions] == [place, None], "nothing was seen in the other one"


@pytest.mark.parametrize(("verdict", "blamed"), [("inconclusive", ["block.lin"]), ("fail", ["block.lin", "other"])])
def test_an_inconclusive_verdict_blames_no_module_within_its_formats_tolerance(monkeypatch, verdict, blamed):
    job, run = Job("script", "train.py", (), ".", 10), RunResult("reference", 0, "stopped", 10, losses=(1.0,) * 10)
    audit = Audit(job, run, TRACE, replay=run, replay_spec=RunSpec(job, "replay", formats=("float16",)))
    found = [Contribution("block.lin", 0.01**2), Contribution("other", 0.001**2)]
    monkeypatch.setattr(repairs, "contributions", lambda *_: found)
    monkeypatch.setattr(repairs, "whole_error", lambda *_: 0.0)
    judgement = Judgement(verdict, "", 0.01, Difference(-0.012, -0.03, 0.008), ())
    monkeypatch.setattr(Trials, "judge", lambda *_: judgement)
    plan = Plan("float16", {"block.lin": "float16", "other": "float16"})
    promotions = _after_silent_error(Trials(audit, lambda spec: run, {0: run}), plan, {0: run})
    assert [each.fqn for each in promotions] == blamed
