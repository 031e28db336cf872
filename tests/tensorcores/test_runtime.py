"""Steps under the profiler: scopes around every forward on any machine, kernels on those with a GPU."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from trace_builder import NVJET, document, launched, mm, write

from precaudit.tensorcores.traces.runtime import compiled_ptx, marked_scopes, profiled_steps, read_back


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.ReLU())

    def forward(self, x):
        return checkpoint(self.blocks, self.first(x), use_reentrant=False).sum()


def scopes_of(profiler, path):
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return [e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("fwd::")]


def test_every_forward_is_marked_also_when_checkpointing_repeats_it(tmp_path):
    model = Net()
    with marked_scopes(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(torch.randn(4, 64)).backward()
    found = scopes_of(profiler, tmp_path / "trace.json")
    assert {"fwd::", "fwd::first", "fwd::blocks", "fwd::blocks.0", "fwd::blocks.1"} == set(found)
    assert found.count("fwd::blocks.0") == 2


def test_several_models_have_their_names_in_front(tmp_path):
    student, teacher = Net(), Net()
    with marked_scopes(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        student(torch.randn(4, 64)) + teacher(torch.randn(4, 64))
        student(torch.randn(4, 64))
    assert {"fwd::student.first", "fwd::teacher.first"} <= set(scopes_of(profiler, tmp_path / "trace.json"))


def test_a_failing_forward_closes_its_mark(tmp_path):
    model = Net()
    with marked_scopes(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 63))
        model(torch.randn(4, 64))
    assert scopes_of(profiler, tmp_path / "trace.json").count("fwd::first") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_steps_run_and_nothing_is_measured():
    ran = []
    with profiled_steps() as recording:
        ran.append(Net()(torch.randn(4, 64)))
    assert ran
    assert not recording.tensor_cores.measured
    assert recording.tensor_cores.method == "not measured: no GPU"
    assert recording.tensor_cores.time_share is None


def test_reading_back_reports_its_failure(tmp_path):
    found = read_back(write(tmp_path, document([])))
    usage = found.tensor_cores
    assert not usage.measured
    assert "no GPU kernels" in usage.method
    assert str(tmp_path) not in usage.method
    assert (found.findings, found.seconds) == ((), 0.0)
    events = [mm(0, 50, 512, 512, 512), *launched(NVJET, 5, 300, 1)]
    assert read_back(write(tmp_path, document(events))).tensor_cores.time_share.native == 1.0


def test_the_ptx_of_all_triton_kernels_is_found(monkeypatch):
    class CompiledKernel:
        def __init__(self, name, **asm):
            self.name, self.asm = name, asm

    monkeypatch.delitem(sys.modules, "triton.compiler", raising=False)
    assert compiled_ptx() == {}
    monkeypatch.setitem(sys.modules, "triton.compiler", SimpleNamespace(CompiledKernel=CompiledKernel))
    kept = [CompiledKernel("a", ptx="one"), CompiledKernel("a", ptx="two"), CompiledKernel("b", amdgcn="x")]
    found = compiled_ptx()
    assert len(kept) == 3
    assert found.keys() == {"a"}
    assert set(found["a"]) == {"one", "two"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backward_kernels_belong_to_their_layers():
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).cuda()
    inputs = torch.randn(4096, 1024, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(inputs).sum()
        loss.backward()

    step()
    with profiled_steps() as recording:
        step()
    usage = recording.tensor_cores
    assert usage.measured
    assert usage.unattributed_share < 0.4  # the sum and its backward; those of the layers are two thirds
    assert {"0", "2"} <= {layer.fqn for layer in usage.layers}
    assert usage.time_share.native + usage.time_share.legacy > 0.3
