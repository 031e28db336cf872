"""Traces of several processes: merged in any order they are what one process would have seen."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traced import tracing

from precaudit.model import Location, Op
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
        assert {layer.fqn: layer.calls for layer in together.layers} == {each.fqn: each.calls for each in whole.layers}
        assert together.leaves == whole.leaves
        formats = [t.formats for layer in together.layers for t in layer.tensors]
        assert formats == [t.formats for layer in whole.layers for t in layer.tensors]


class TwoLines(nn.Module):
    """Multiplies at two lines; which of them has a measure's extreme depends on the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        first = x @ self.weight
        return first.mean() + (1 / (x * 8)) @ self.weight


def operations(batches):
    model = TwoLines()
    with tracing() as traced:
        for batch in batches:
            model(batch).sum().backward()
    return traced.trace


def summarized(trace):
    """The operations without what depends on the order of summation."""
    return [
        replace(
            op,
            flops=pytest.approx(op.flops) if op.flops else None,
            local_error={},
            places={measure: place for measure, place in op.places.items() if measure not in op.local_error},
            tensors=[(t.role, t.stats.numel, t.stats.amax, t.stats.exponents) for t in op.tensors],
        )
        for op in trace.ops
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_operations_of_processes_are_those_of_one(order):
    batches = [torch.full((2, 4), value) for value in (3.0, 0.001, 40.0)]
    assert summarized(merged([operations([batches[i]]) for i in order])) == summarized(operations(batches))


def test_what_one_process_has_measured_is_kept():
    here, there = Location("a.py", 1), Location("a.py", 2)
    bare = Op("fc", "add", 1, "other", None, ())
    full = Op(
        "fc", "add", 2, "other", here, (), 3.0, ((2, 2),), "float32", 8.0, {"float16": 0.1}, True, (0.5, 4.0), 7.0,
        "bfloat16", True, 5.0, {"input": there}, True,
    )  # fmt: skip
    for pair in ((bare, full), (full, bare)):
        (op,) = merged([Trace(ops=(each,)) for each in pair]).ops
        assert op == replace(full, calls=3, flops=pytest.approx(16 / 3))


def test_flops_and_shapes_are_those_of_the_work_of_all_processes():
    few = Op("fc", "linear", 1, "lower", None, (), shapes=((1, 2), (2, 2)), flops=8.0)
    many = Op("fc", "linear", 3, "lower", None, (), shapes=((3, 2), (2, 2)), flops=24.0)
    for pair in ((few, many), (many, few)):
        (op,) = merged([Trace(ops=(each,)) for each in pair]).ops
        assert (op.calls, op.flops, op.shapes) == (4, pytest.approx((8 + 3 * 24) / 4), many.shapes)


def test_limits_of_a_format_are_of_half_results_in_any_process():
    half = Op("fc", "add", 1, "other", Location("a.py", 1), (), half=True, half_amax=2.0, constants=(1.0, 2.0))
    wide = replace(half, location=Location("a.py", 2), half=False, half_amax=None, constants=(0.0, 1e9))
    for pair in ((half, wide), (wide, half)):
        (op,) = merged([Trace(ops=(each,)) for each in pair]).ops
        assert op == replace(half, calls=2)


def test_lines_of_an_operation_are_kept_apart_over_processes():
    one, other = (Op("fc", "add", 1, "other", Location("a.py", line), ()) for line in (1, 2))
    assert merged([Trace(lines=(one, other)), Trace(lines=(one,))]).lines == (replace(one, calls=2), other)


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
