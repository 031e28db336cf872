"""Traces of real runs, where the checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from precaudit.errors import ExitCode, PrecauditError
from precaudit.tensorcores.traces.analysis import analyse
from precaudit.tensorcores.traces.kernel_rules import classify
from precaudit.tensorcores.traces.scanning import TraceFile
from precaudit.tensorcores.traces.trace import read_trace

FOLDER = Path(__file__).parents[3] / "shared" / "traces"


def trace(name):
    path = FOLDER / f"{name}.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="module")
def usage():
    found = {}

    def get(name):
        if name not in found:
            found[name] = analyse(read_trace(trace(name)))
        return found[name]

    return get


@pytest.mark.parametrize(
    ("name", "on_tensor_cores"),
    [
        ("h100-vit-inference", 0.783),
        ("h100-qwen-inference", 0.366),  # the other 0.634 are element-wise kernels
        ("b200-vllm-moe", 0.597),
        ("a100-alexnet", 0.170),
        ("v100-resnet50-fp32", 0.0),
    ],
)
def test_share_of_gpu_time_on_tensor_cores(usage, name, on_tensor_cores):
    share = usage(name).tensor_cores.time_share
    assert share.native + share.legacy == pytest.approx(on_tensor_cores, abs=0.002)
    assert share.unknown < 0.05
    assert share.native + share.legacy + share.none + share.unknown == pytest.approx(1)


def test_the_legacy_paths_of_vit_on_hopper(usage):
    """A third of the time are Ampere GEMMs of cuBLAS; FlashAttention 2 and cuDNN's convolution are Ampere's as well."""
    analysis = usage("h100-vit-inference")
    legacy = [k for k in analysis.tensor_cores.kernels if k.tensor_core == "legacy"]
    by_op = {}
    for kernel in legacy:
        by_op[kernel.op] = by_op.get(kernel.op, 0.0) + kernel.seconds / analysis.seconds
    assert by_op["aten::addmm"] == pytest.approx(0.333, abs=0.002)
    assert by_op["aten::_flash_attention_forward"] == pytest.approx(0.101, abs=0.002)
    assert by_op["aten::cudnn_convolution"] == pytest.approx(0.080, abs=0.002)
    assert analysis.tensor_cores.time_share.legacy == pytest.approx(sum(by_op.values()))


@pytest.mark.parametrize(
    "name", ["h100-vit-inference", "h100-qwen-inference", "b200-vllm-moe", "mi300-resnet-training"]
)
def test_modules_are_attributed(usage, name):
    """Of launched kernel time, apart from what is no module's: collectives, the optimizer, gradient accumulation."""
    usage_ = usage(name).tensor_cores
    assert usage_.unattributed_share < 0.05
    module_time = sum(row.time.seconds for row in usage_.layers if row.module)
    named = {"communication", "optimizer", "gradient accumulation", "launch not recorded"}
    other = sum(row.time.seconds for row in usage_.layers if not row.module and row.fqn not in named)
    assert module_time / (module_time + other) > 0.95


def test_backward_kernels_reach_their_layers(usage):
    """ResNet in training: dgrad and wgrad kernels of a convolution are its own, though autograd launched them."""
    kernels = usage("mi300-resnet-training").tensor_cores.kernels
    owners = {k.fqn.rstrip("0123456789_") for k in kernels if k.op == "aten::convolution_backward" and k.fqn}
    assert owners == {"Conv2d"}


def test_amd(usage):
    found = usage("mi300-resnet-training").tensor_cores
    assert found.device == "AMD Instinct MI300X"
    assert "not an NVIDIA GPU" in found.method


def test_tf32_of_alexnet(usage):
    native = [k for k in usage("a100-alexnet").tensor_cores.kernels if k.tensor_core == "native"]
    assert {k.operands for k in native} == {"tf32"}


def test_rates_stay_below_the_peak(usage):
    for name in ("h100-vit-inference", "h100-qwen-inference", "b200-vllm-moe"):
        shares = [k.peak_share for k in usage(name).tensor_cores.kernels if k.peak_share]
        assert shares
        assert max(shares) < 1


def test_classes_agree_with_hardware_counters():
    """Executed float32 multiply-adds: none in a product on Tensor Cores, some in every other."""
    path = trace("a100-cupti-counters")
    with pytest.raises(PrecauditError, match="77 CUPTI counter ranges") as caught:
        read_trace(path)
    assert caught.value.exit_code == ExitCode.NOTHING_TO_MEASURE
    events = [e for batch in TraceFile(path) for e in batch if e.get("cat") == "cuda_profiler_range"]
    seen = set()
    for event in events:
        found = classify(event["name"], (8, 0))
        fused = event["args"].get("smsp__sass_thread_inst_executed_op_ffma_pred_on.sum", 0)
        if found.matmul and found.tensor_core != "unknown":
            assert (fused == 0) == (found.tensor_core == "native")
            seen.add(found.tensor_core)
    assert seen == {"native", "none"}
