"""Runs that measure gradients by the way."""

import pytest
import torch
from small_runs import BRAIN, spec, train, training
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from precaudit.model import LossScale, Plan
from precaudit.running.worker import run


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_probes_measure_gradients_and_stay_on_the_float32_path(name, tmp_path):
    saving = spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2, 3}))
    reference = run(saving, train)
    scale = LossScale("static", 2.0**6) if name == "float16" else LossScale()
    plan = Plan(name, dict.fromkeys(BRAIN.modules, name), loss_scale=scale)
    probing = spec(label="replay", probe_dir=str(tmp_path), probe_compare={2: ("a", plan), 3: ("a", plan)})
    replay = run(probing, train)
    assert [replay.losses[i] for i in (0, 1, 4, 5)] == [reference.losses[i] for i in (0, 1, 4, 5)]
    assert [replay.losses[i] for i in (2, 3)] != [reference.losses[i] for i in (2, 3)]
    assert {d.fqn for d in replay.differences} == {"model.0", "model.2"}
    for difference in replay.differences:
        assert difference.evaluations == 2
        assert 0 < difference.delta < 1e-3 * difference.gradient
        assert difference.noise > 0
        assert difference.bias <= difference.delta * 1.01


def test_probes_of_float32_find_no_difference(tmp_path):
    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), train)
    plan = Plan("float32", dict.fromkeys(BRAIN.modules, "float32"))
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", plan)}), train)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_probes_leave_what_the_script_keeps_out_of_autocast(tmp_path):
    def forward(model, x):
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            return model(x)

    def code():
        train(forward=forward)

    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", BRAIN)}), code)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_probes_through_reentrant_checkpoints_are_unscaled(tmp_path):
    def code():
        train(forward=lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=True))

    run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
    plan = Plan("float32", loss_scale=LossScale("static", 2.0**6))
    replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", plan)}), code)
    assert [d.delta for d in replay.differences] == [0.0, 0.0]


def test_products_where_the_script_switched_autocast_off_count_as_no_products():
    class PartlyDisabled(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return x @ self.lin.weight + self.lin(x)

    model = PartlyDisabled()
    result = run(spec(audited=frozenset({0})), lambda: train(forward=lambda other, x: other(model(x))))
    ops = {(op.fqn, op.op): (op.category, op.half) for op in result.trace.ops if op.op in ("linear", "matmul")}
    inside = [kind for (fqn, op), kind in ops.items() if op == "matmul" or fqn.endswith("lin")]
    assert inside == [("other", False)] * 2
    assert ("lower", True) in ops.values()


def test_gradients_of_sharded_parameters_are_compared(tmp_path):
    def make():
        return fully_shard(nn.Linear(4, 4), mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))

    code = training(make, lambda model: model(torch.randn(8, 4)).square().mean(), lr=0.1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = run(spec(probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
        replay = run(spec(probe_dir=str(tmp_path), probe_compare={2: ("a", BRAIN)}), code)
    finally:
        torch.distributed.destroy_process_group()
    assert replay.losses[:2] == plain.losses[:2]
    assert replay.losses[3:] == plain.losses[3:]
    assert {difference.label for difference in replay.differences} == {"a"}
