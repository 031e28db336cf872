"""Timed runs of small scripts, every arm on the CPU: the times mean nothing here, the order and the hooks do."""

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import FakeNvml, card
from timed import timed, training
from torch import nn

from precaudit.hardware.counters import Pipes
from precaudit.hardware.energy import Meter
from precaudit.instrument.names import ModuleName
from precaudit.instrument.scopes import Frame
from precaudit.measuring import interleaving, replaying
from precaudit.measuring.interleaving import Cycle
from precaudit.measuring.records import Arm
from precaudit.model import Plan

PLAN = Plan("bfloat16", {"0": "bfloat16", "2": "float32"})
ARMS = Arm("float32"), Arm("tf32", tf32=True), Arm("amp", half="bfloat16"), Arm("plan", plan=PLAN)


def test_arms_take_turns():
    result = timed(training(), *ARMS)
    blocks = result.observed.blocks
    assert result.status == "stopped"
    assert [block.arm for block in blocks[:8]] == ["float32", "tf32", "amp", "plan"] * 2
    assert [block.round for block in blocks[:8]] == [0] * 4 + [1] * 4
    assert len({block.arm for block in blocks}) == 4
    assert all(count >= 4 for count in Counter(block.arm for block in blocks).values())
    assert all(block.seconds > 0 for block in blocks)


def test_each_arm_is_in_force_in_its_own_steps_only():
    seen = []
    blocks = timed(training(seen=seen), *ARMS, rounds=3).observed.blocks
    expected = [torch.float32] * 3
    for block in blocks:
        expected += [torch.bfloat16 if block.arm in ("amp", "plan") else torch.float32] * (1 + block.steps)
    assert seen == expected


def test_nothing_is_left():
    timed(training(), *ARMS)
    assert not nn.modules.module._has_any_global_hook()
    assert not torch.is_autocast_enabled("cpu")


def test_timed_steps_of_float32_carry_no_hook():
    hooked = []

    def code():
        model = nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        while True:
            hooked.append(nn.modules.module._has_any_global_hook() != {} or bool(model._forward_hooks))
            model(torch.randn(16, 8)).sum().backward()
            optimizer.step()

    blocks = timed(code, Arm("float32")).observed.blocks
    expected = [True, False, False]
    for block in blocks:
        expected += [True] + [False] * block.steps
    assert hooked == expected


def test_a_script_that_ends_early_keeps_its_rounds():
    result = timed(training(steps=30), *ARMS, window=60.0, budget=60.0)
    assert result.status == "ended"
    assert {block.round for block in result.observed.blocks} >= {0, 1}
    assert not nn.modules.module._has_any_global_hook()


def test_on_another_device_only_float32_is_timed():
    blocks = timed(training(), *ARMS, devices=("cuda",)).observed.blocks
    assert {block.arm for block in blocks} == {"float32"}


def test_the_arm_that_a_script_fails_under_is_named():
    def loss(y):
        return nn.functional.binary_cross_entropy(torch.sigmoid(y) * check(y), torch.ones_like(y))

    def check(y):
        if torch._C._get_cublas_allow_tf32():
            raise ValueError("no TF32 here")
        return 1.0

    result = timed(training(loss=loss), *ARMS)
    assert result.status == "failed"
    assert (result.observed.running, result.error.message) == ("tf32", "no TF32 here")
    assert not nn.modules.module._has_any_global_hook()


def test_loss_scale_is_applied_in_backward_and_removed_before_the_step():
    gradients = []

    def code():
        weight = nn.Linear(1, 1, bias=False)
        weight.weight.register_hook(lambda gradient: gradients.append(gradient.item()))
        optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
        while True:
            optimizer.zero_grad()
            weight(torch.ones(1, 1)).sum().backward()
            before = weight.weight.item()
            optimizer.step()
            assert before - weight.weight.item() == pytest.approx(1.0, rel=1e-3)

    result = timed(code, Arm("float32"), Arm("amp", half="bfloat16", scale=1024.0))
    assert result.status == "stopped", result.error
    assert set(gradients) == {1.0, 1024.0}


def test_profiled_arms_come_last():
    found = timed(training(), *ARMS, profiled=("float32", "plan")).observed
    assert list(found.profiled) == ["float32", "plan"]
    assert found.profiled["plan"].steps == 2
    if not torch.cuda.is_available():
        assert not found.profiled["plan"].tensor_cores.measured


@pytest.mark.parametrize(
    ("pattern", "ends"),
    [("A", "A"), ("AB", "B"), ("DDDDDG", "G"), ("ABB", "A")],
)
def test_a_cycle_ends_with_the_rarest_optimizer(pattern, ends):
    cycle, optimizers = Cycle(), {letter: SimpleNamespace() for letter in pattern}
    found = [letter for letter in pattern * 12 if cycle.ends_with(optimizers[letter])]
    assert set(found[-8:]) == {ends}


def test_blocks_of_a_gan_hold_whole_cycles():
    order = []

    def code():
        nets = [nn.Linear(2, 1) for _ in range(2)]
        optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in nets]
        while True:
            for net, optimizer in zip(nets, optimizers, strict=True):
                order.append(optimizer)
                net(torch.ones(3, 2)).sum().backward()
                optimizer.step()

    blocks = timed(code, Arm("float32"), Arm("amp", half="bfloat16")).observed.blocks
    assert {block.steps % 2 for block in blocks} == {0}


def test_counters_are_read_in_the_last_round_of_every_arm(monkeypatch):
    nvml = FakeNvml()
    pipes = Pipes(nvml, card(gpm=1, counters={5: 62.5}))
    monkeypatch.setattr(interleaving, "own_counters", lambda devices: nullcontext((Meter(), pipes)))
    found = timed(training(), *ARMS).observed
    assert [(block.arm, block.tensor_share) for block in found.blocks[-4:]] == [(arm.name, 0.625) for arm in ARMS]
    assert not any(block.tensor_share for block in found.blocks[:-4])
    assert found.counters == "GPM counters of the whole device"
    assert nvml.samples == 0


def test_layers_are_replayed_alone_under_the_counters(monkeypatch):
    """Layers of the same shapes are one, lookups multiply nothing, and one that raises by itself is left out."""

    class Odd(nn.Linear):
        def forward(self, x):
            assert torch.is_grad_enabled()
            return super().forward(x)

    def code():
        layers = nn.Linear(8, 8), nn.Linear(8, 8), Odd(8, 4), nn.Linear(4, 1)
        model = nn.Sequential(nn.Embedding(10, 8), *layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        while True:
            optimizer.zero_grad()
            model(torch.randint(10, (16,))).square().mean().backward()
            optimizer.step()

    nvml = FakeNvml()
    pipes = Pipes(nvml, card(gpm=1, counters={5: 62.5}))
    monkeypatch.setattr(interleaving, "own_counters", lambda devices: nullcontext((Meter(), pipes)))
    monkeypatch.setattr(replaying, "SECONDS", 0.01)
    plan = Plan("bfloat16", {"1": "bfloat16", "4": "bfloat16"})
    found = timed(code, Arm("float32"), Arm("plan", plan=plan)).observed
    assert found.layers == {fqn: {"float32": 0.625, "plan": 0.625} for fqn in ("1", "4")}
    assert nvml.samples == 0


def test_the_heaviest_layers_are_kept():
    calls = replaying.LayerCalls()
    for size in range(1, 20):
        module = nn.Linear(size, size)
        frame = Frame(module, ModuleName("model", str(size)), None)
        frame.call = ((torch.ones(2, size, requires_grad=True),), {})
        calls.left(frame, torch.ones(1))
    assert [call.name.fqn for call in calls] == [str(size) for size in range(20 - replaying.MOST, 20)]
    assert not any(call.args[0].requires_grad for call in calls)


def test_a_run_for_the_profiler_alone_spends_no_step_on_counters(monkeypatch):
    pipes = Pipes(FakeNvml(), card(gpm=1, counters={5: 62.5}))
    monkeypatch.setattr(interleaving, "own_counters", lambda devices: nullcontext((Meter(), pipes)))
    found = timed(training(steps=12), *ARMS, rounds=0, profiled=("float32", "plan")).observed
    assert not found.blocks
    assert list(found.profiled) == ["float32", "plan"]


def test_skipped_steps_are_counted():
    def code():
        model = nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        while True:
            optimizer.zero_grad()
            (model(torch.full((16, 8), 1e4)) * 1e4).sum().backward()
            optimizer.step()

    blocks = timed(code, Arm("float32"), Arm("amp", half="float16", scale=1e4)).observed.blocks
    assert not any(block.skipped for block in blocks if block.arm == "float32")
    assert any(block.skipped for block in blocks if block.arm == "amp")


def test_counters_that_are_refused_cost_no_block(monkeypatch):
    pipes = Pipes(FakeNvml(), card(gpm=1))
    monkeypatch.setattr(interleaving, "own_counters", lambda devices: nullcontext((Meter(), pipes)))
    found = timed(training(), *ARMS).observed
    assert {block.arm for block in found.blocks} == {arm.name for arm in ARMS}
    assert not any(block.tensor_share for block in found.blocks)
    assert found.counters == "not measured: GPM counters refused (Not Supported)"


def test_energy_is_read_in_the_last_round_alone_and_its_reading_is_not_timed(monkeypatch):
    """A driver may take longer to answer than a step takes."""

    reads = []

    def read():
        sleep(0.1)
        reads.append(None)
        return float(len(reads))

    meter = SimpleNamespace(counts=True, method="slow", read=read)
    monkeypatch.setattr(interleaving, "own_counters", lambda devices: nullcontext((meter, Pipes())))
    found = timed(training(), *ARMS, energy_window=1e-3).observed
    assert [block.joules for block in found.blocks[-4:]] == [1.0] * 4
    assert len(reads) == 8
    assert min(block.seconds for block in found.blocks[-4:]) < 0.1


def test_a_cuda_graph_is_noticed_with_the_precision_that_it_is_recorded_in(monkeypatch):
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda graph: None)
    begin, step = torch.cuda.CUDAGraph.capture_begin, training(steps=4)

    def code():
        torch.cuda.CUDAGraph.capture_begin(None)
        step()

    assert timed(code, Arm("float32")).observed.captured == {"float32"}
    assert torch.cuda.CUDAGraph.capture_begin is begin
    assert not timed(training(steps=4), Arm("float32")).observed.captured


def test_scripts_that_profile_themselves_are_left_to_it():
    """Each: how the script ended, whether its own profile has events, and which arms were profiled."""
    script = Path(__file__).with_name("profiling_scripts.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^script (.*)$", done.stdout, re.MULTILINE) == [
        "all stopped False [False, False]",
        "before stopped True [False, False]",
        "within stopped True [False, False]",
        "after stopped False [True, False]",
        "never stopped False [True, True]",
    ]


def test_no_synchronization_during_graph_capture(monkeypatch):
    """Waiting would end the recording, and a recorded step doesn't run."""
    capturing, waits = False, []

    def wait(devices):
        waits.append(capturing)

    def code():
        nonlocal capturing
        step = training(steps=1)
        for number in range(40):
            capturing = number in (3, 4, 5, 6)
            step()

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(interleaving, "wait_for", wait)
    blocks = timed(code, Arm("float32")).observed.blocks
    assert blocks
    assert waits
    assert not any(waits)


def test_energy_is_read_around_blocks():
    meter = Meter(FakeNvml(), card(energy=[1000, 2000, 5500]))
    assert meter.counts
    assert (meter.read(), meter.read()) == (2.0, 5.5)
    absent = Meter(FakeNvml(), card())
    assert not absent.counts
    assert absent.read() is None
    assert absent.method == "not measured: this GPU does not count energy"
    assert Meter(problem="no driver").method == "not measured: no driver"
