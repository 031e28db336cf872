"""The stage with runners that a test makes up: what is asked of them, and what becomes of what they say."""

import pickle
from dataclasses import replace

import pytest
import torch

from precaudit.hardware.peaks import get_gpu
from precaudit.measuring.program import Program, arms_for
from precaudit.measuring.records import ARMS, Block, Feed, Observation, Profiled
from precaudit.measuring.summary import performance
from precaudit.model import (
    Environment,
    Finding,
    KernelTime,
    Layer,
    LayerTime,
    Op,
    Plan,
    TensorCores,
    TensorRecord,
    TensorStats,
    TimeShare,
)
from precaudit.profiling.audit import Audit
from precaudit.profiling.environment import environment
from precaudit.profiling.timing import measure, observe, unmeasured
from precaudit.running.job import Job, RunResult, ScriptError
from precaudit.tracing.records import Trace

H100 = get_gpu("h100")
PLAN = Plan("bfloat16", {"fc": "bfloat16"})
ON_H100 = Environment(device="NVIDIA H100 80GB HBM3", cuda="13.0", capability="9.0")
ON_CPU = Environment()


def audit(status="stopped"):
    size = 4096
    records = tuple(TensorRecord(role, TensorStats(numel=size * size)) for role in ("activation", "activation_grad"))
    op = Op("fc", "linear", 1, "lower", None, records, None, ((size, size), (size, size)), half=True)
    layer = Layer("fc", "Linear", size * size, 1, ())
    trace = Trace((layer,), (op,), audited_steps=1)
    return Audit(Job("script", "train.py", (), ".", 60), RunResult("reference", 0, status, 50), trace)


class Replies:
    """A runner that gives these results in turn and keeps the programs it was asked for."""

    def __init__(self, *results):
        self.results, self.programs = list(results), []

    def __call__(self, spec):
        self.programs.append(spec.runs.keywords["program"])
        return self.results.pop(0)

    def many(self, specs):
        return [self(spec) for spec in specs]


def seen(status="stopped", error=None, **facts):
    return RunResult("timing", 0, status, error=error, observed=Observation(**{"device": "cuda", **facts}))


def blocks(**milliseconds):
    return tuple(Block(arm, i, 10, ms / 100) for i in range(5) for arm, ms in milliseconds.items())


def kernels(native, seconds, rules=()):
    share = TimeShare(native, 0.0, 1 - native, 0.0)
    layer = LayerTime("fc", KernelTime(seconds, share, 1e9, 1.0, 0.5), share=1.0, calls=3)
    found = TensorCores(True, "torch.profiler", share, 0.01, None, (), "NVIDIA H100", (layer,))
    return Profiled(found, tuple(Finding(rule, "note", rule, "") for rule in rules), 2, seconds)


def test_on_a_gpu_everything_is_measured():
    profiled = {"float32": kernels(0.0, 0.018, ["PA403"]), "plan": kernels(0.9, 0.008, ["PA401", "PA402", "PA403"])}
    timed = blocks(float32=10, tf32=8, amp=5.5, plan=5)
    reply = seen(blocks=timed, profiled=profiled, feed=Feed((0.001,), 32.0, 200.0), energy="NVML")
    found = measure(audit("ended"), PLAN, H100, 3.6, ON_H100, Replies(reply))
    assert found.performance.step_seconds["plan"] == pytest.approx(0.005)
    assert found.performance.speedup["plan"] == pytest.approx(2.0)
    assert found.performance.gpu == "NVIDIA H100 80GB HBM3"
    assert found.performance.gpu_busy_share == {"float32": pytest.approx(0.9), "plan": pytest.approx(0.8)}
    assert found.cost["usd_per_thousand_steps_plan"] == pytest.approx(0.005)
    assert found.cost["usd_per_run_float32"] == pytest.approx(0.01 * 50 / 1000)
    assert found.cost["usd_per_epoch_plan"] == pytest.approx(0.001)
    assert [finding.rule for finding in found.findings] == ["PA402"]
    cores = found.tensor_cores
    assert cores.measured
    assert cores.time_share.native == 0.9
    assert cores.layers[0].before.time_share.native == 0.0
    assert cores.layers[0].before.seconds == 0.018
    assert cores.eligible_flops_share == 1.0
    assert cores.notes[0].startswith("2.00x the speed of float32 measured on H100")


def test_the_prediction_error_is_reported_for_a_known_card():
    found = measure(audit(), PLAN, H100, None, ON_H100, Replies(seen(blocks=blocks(float32=10, plan=5)))).performance
    predicted = 3 * 2 * 4096**3 / 67e12
    assert found.predicted_step_seconds["float32"] == pytest.approx(predicted)
    assert found.prediction_error["float32"] == pytest.approx(predicted / 0.01 - 1)
    assert found.predicted_for == "H100"


def test_a_card_that_is_not_listed_is_timed_in_the_formats_of_its_generation():
    old = Environment(device="NVIDIA GeForce RTX 2080 SUPER", cuda="12.8", capability="7.5")
    replies = Replies(seen(blocks=blocks(float32=10)))
    measure(audit(), PLAN, get_gpu("t4"), None, old, replies)
    assert [(arm.name, arm.half) for arm in replies.programs[0].arms[:2]] == [("float32", None), ("amp", "float16")]


@pytest.mark.parametrize(
    ("device", "cuda", "stands_in", "known"),
    [("NVIDIA A16", "12.8", "a10", False), ("AMD Instinct MI300X", None, "mi300x", True)],
)
def test_a_prediction_for_another_card_has_no_error_on_this_one(device, cuda, stands_in, known):
    where = Environment(device=device, cuda=cuda, capability="8.6" if cuda else "9.4")
    replies = Replies(seen(blocks=blocks(float32=10)))
    found = measure(audit(), PLAN, get_gpu(stands_in), None, where, replies).performance
    assert found.predicted_for == get_gpu(stands_in).name
    assert found.step_seconds["float32"] == pytest.approx(0.01)
    assert (found.prediction_error["float32"] is not None) == known


def test_a_target_that_is_not_this_card_is_predicted():
    timed = seen(blocks=blocks(float32=10, plan=5))
    found = measure(audit(), PLAN, get_gpu("a100"), None, ON_H100, Replies(timed))
    assert "expected on A100" in found.tensor_cores.notes[0]
    assert found.performance.predicted_for == "H100"


def test_on_a_cpu_float32_alone_is_timed():
    replies = Replies(seen(device="cpu", blocks=blocks(float32=10)))
    found = measure(audit(), PLAN, H100, 3.6, ON_CPU, replies)
    (program,) = replies.programs
    assert [arm.name for arm in program.arms] == ["float32"]
    assert program.profiled == ()
    assert found.performance.step_seconds == {**dict.fromkeys(ARMS), "float32": pytest.approx(0.01)}
    assert found.performance.prediction_error == {"float32": None, "plan": None}
    assert found.performance.gpu is None
    assert found.cost["usd_per_thousand_steps_float32"] == pytest.approx(0.01)
    assert found.cost["usd_per_thousand_steps_plan"] is None
    assert not found.tensor_cores.measured
    assert found.tensor_cores.time_share is None
    assert "expected on H100" in found.tensor_cores.notes[0]


@pytest.mark.parametrize("status", ["killed", "interrupted"])
def test_a_run_without_measurements_leaves_nulls(status):
    found = measure(audit(), PLAN, H100, 3.6, ON_H100, Replies(RunResult("timing", 0, status)))
    assert found.performance.step_seconds == dict.fromkeys(ARMS)
    assert found.performance.method == "not measured"
    assert found.cost["usd_per_thousand_steps_float32"] is None
    assert not found.tensor_cores.measured


def test_an_arm_that_fails_is_left_out_and_named():
    arms = arms_for(PLAN, H100.formats)
    broken = seen("failed", ScriptError("RuntimeError", "unsafe\nto autocast", ""), running="amp")
    replies = Replies(broken, seen(blocks=blocks(float32=1)))
    found, notes = observe(audit(), Program(arms), replies)
    assert [arm.name for arm in replies.programs[1].arms] == ["float32", "tf32", "plan"]
    assert notes == ("amp was not timed: the script failed under it (RuntimeError: unsafe)",)
    assert len(found.blocks) == 5


def test_an_arm_that_was_timed_before_it_failed_is_kept():
    error = ScriptError("RuntimeError", "the profiler may not", "")
    replies = Replies(seen("failed", error, running="plan", blocks=blocks(float32=2, plan=1)))
    found, notes = observe(audit(), Program(arms_for(PLAN, H100.formats)), replies)
    assert len(replies.programs) == 1
    assert notes == (
        "plan has fewer rounds than it might: the script failed under it (RuntimeError: the profiler may not)",
    )
    assert {block.arm for block in found.blocks} == {"float32", "plan"}


def test_a_script_too_short_for_the_profiler_runs_once_more():
    program = Program(arms_for(PLAN, H100.formats), profiled=("float32", "plan"))
    replies = Replies(seen("ended", blocks=blocks(float32=1)), seen(profiled={"plan": kernels(0.5, 0.1)}))
    found, _ = observe(audit(), program, replies)
    assert replies.programs[1].rounds == 0
    assert len(found.blocks) == 5
    assert list(found.profiled) == ["plan"]


def test_a_cpu_script_on_a_gpu_machine_runs_once():
    program = Program(arms_for(PLAN, H100.formats), profiled=("float32", "plan"))
    replies = Replies(seen("ended", device="cpu", blocks=blocks(float32=1)))
    found, _ = observe(audit(), program, replies)
    assert len(replies.programs) == 1
    assert not found.profiled


def test_the_requested_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8 + (index or 0), 0))
    second = environment("cuda:1")
    assert (second.device, second.capability) == ("GPU 1", "9.0")
    current = [environment(device).device for device in ("cuda", "cpu", "cuda:7", None)]
    assert set(current) == {"GPU None"}


@pytest.mark.parametrize(("captured", "kept"), [("float32", {"float32"}), ("plan", set())])
def test_arms_that_replay_another_arms_cuda_graph_are_dropped(captured, kept):
    """Replayed, it runs the kernels that it was recorded with: no speed of the plan's."""
    profiled = {"float32": kernels(0.0, 0.1), "plan": kernels(0.0, 0.1)}
    reply = seen(blocks=blocks(float32=2, plan=2), profiled=profiled, captured=frozenset({captured}))
    found, (note,) = observe(audit(), Program(arms_for(PLAN, H100.formats)), Replies(reply))
    assert "replays a CUDA graph" in note
    assert {block.arm for block in found.blocks} == set(found.profiled) == kept


def test_an_arm_whose_steps_are_all_skipped_is_not_timed():
    skipping = [replace(block, skipped=1) if block.arm == "amp" else block for block in blocks(float32=2, amp=1)]
    found, notes = observe(audit(), Program(arms_for(PLAN, H100.formats)), Replies(seen(blocks=skipping)))
    assert notes == ("amp was not timed: its gradients overflow float16, and steps are skipped",)
    assert performance(found, "H100").speedup["amp"] is None
    recovered = [replace(block, skipped=block.round == 1) for block in blocks(float32=2, amp=1)]
    found, notes = observe(audit(), Program(arms_for(PLAN, H100.formats)), Replies(seen(blocks=recovered)))
    assert notes == ()
    assert performance(found, "H100").speedup["amp"] == pytest.approx(2)


def test_kernels_of_float32_are_not_reported_under_the_plan():
    profiled = {"float32": kernels(0.0, 0.02)}
    (row,) = measure(audit(), PLAN, H100, None, ON_H100, Replies(seen(profiled=profiled))).tensor_cores.layers
    assert row.time.seconds == 0
    assert row.before.seconds > 0


def test_layers_with_time_in_float32_only_are_kept():
    before = kernels(0.0, 0.02)
    layers = before.tensor_cores.layers
    cores = replace(before.tensor_cores, layers=(*layers, replace(layers[0], fqn="old")))
    profiled = {"float32": replace(before, tensor_cores=cores), "plan": kernels(0.9, 0.01)}
    rows = measure(audit(), PLAN, H100, None, ON_H100, Replies(seen(profiled=profiled))).tensor_cores.layers
    assert [(row.fqn, row.time.seconds, row.before.seconds) for row in rows] == [
        ("fc", 0.01, 0.02),
        ("old", 0.0, 0.02),
    ]


def test_programs_and_observations_travel_between_processes():
    profiled = {"plan": kernels(0.9, 0.01, ["PA402"])}
    for value in (Program(arms_for(PLAN, H100.formats)), seen(profiled=profiled, blocks=blocks(plan=1))):
        assert pickle.loads(pickle.dumps(value)) == value


def test_without_a_plan_all_costs_are_null_and_nothing_is_said_of_speed():
    usual, none = measure(audit(), PLAN, H100, 3.6, ON_CPU, Replies(seen())), unmeasured(3.6)
    assert none.cost == {**dict.fromkeys(usual.cost), "price_per_hour": 3.6}
    assert none.tensor_cores == TensorCores()
    assert usual.tensor_cores.eligible_flops_share == 1
    assert none.performance.step_seconds == usual.performance.step_seconds == dict.fromkeys(ARMS)
