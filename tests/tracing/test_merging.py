"""Traces of several processes: merged in any order they are what one process would have seen."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traced import tracing

from precaudit.tracing.merging import merged, over_processes
from precaudit.tracing.records import Trace


def trained(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with tracing(per_step=True) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for batch in batches:
            optimizer.zero_grad()
            F.mse_loss(model(batch), torch.zeros(len(batch), 2)).backward()
            optimizer.step()
    return traced.trace


DATA = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1))


def seen(trace):
    return {
        (layer.fqn, tensor.role, tensor.name): replace(tensor.stats, sum_squares=round(tensor.stats.sum_squares, 9))
        for layer in trace.layers
        for tensor in layer.tensors
    }


def test_modules_of_any_process_count_as_seen():
    one, other = (Trace(leaves=("a", "b"), unseen=unseen) for unseen in (("a", "b"), ("b",)))
    assert merged([one, other]).unseen == ("b",)


def test_merged_parts_equal_the_whole():
    whole, parts = trained(DATA), [trained(DATA[:1]), trained(DATA[1:3]), trained(DATA[3:])]
    for together in (merged(parts), merged(parts[::-1]), merged([merged(parts[:2]), parts[2]])):
        assert seen(together) == seen(whole)
        assert {(op.fqn, op.op, op.calls) for op in together.ops} == {(op.fqn, op.op, op.calls) for op in whole.ops}
        assert {layer.fqn: layer.calls for layer in together.layers} == {each.fqn: each.calls for each in whole.layers}
        assert together.leaves == whole.leaves
        formats = [t.formats for layer in together.layers for t in layer.tensors]
        assert formats == [t.formats for layer in whole.layers for t in layer.tensors]


def test_a_step_has_the_largest_gradient_of_any_process():
    parts = [Trace(maxima=((0, -3.0), (1, -2.0)), audited_steps=2), Trace(maxima=((0, -1.0),), audited_steps=1)]
    assert merged(parts).maxima == ((0, -1.0), (1, -2.0))
    assert merged(parts).audited_steps == 2


def test_layers_of_model_parts_are_united():
    first, second = trained(DATA), trained(DATA)
    renamed = replace(second, layers=tuple(replace(layer, fqn=f"stage1.{layer.fqn}") for layer in second.layers))
    assert len(merged([first, renamed]).layers) == 2 * len(first.layers)


def test_single_process_is_unchanged():
    trace = trained(DATA[:1])
    assert over_processes(trace) is trace


SCRIPT = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import precaudit

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with precaudit.audit(model, optimizer=optimizer, every=1) as audit:
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((5, 4), 2.0 ** (10 * rank))).square().mean().backward()
        optimizer.step()
report = audit.report()
first = next(layer for layer in report.layers if layer.fqn.endswith("0"))
stats = first.tensor("activation").stats
assert stats.numel == 2 * 3 * 5 * 8, stats.numel
assert first.calls == 6
assert stats.amax > 100 and len(stats.exponents.counts) > 8
dist.destroy_process_group()
print("rank", rank, "ok")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_ranks_report_together(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == 2
