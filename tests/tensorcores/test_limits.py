"""Each limit of what is told of Tensor Cores, with a case on either side of it."""

from __future__ import annotations

import json

import pytest
import torch
from test_eligibility import grouped
from test_padding import linear
from trace_builder import ADD, NVJET, document, launched, mm, module, span, write

from precaudit.hardware.peaks import get_gpu
from precaudit.model import Layer, Plan
from precaudit.tensorcores.shapes.alignment import advice, misaligned, multiple
from precaudit.tensorcores.shapes.eligibility import unreached_findings
from precaudit.tensorcores.shapes.padding import alignment_findings
from precaudit.tensorcores.shapes.roofline import LAUNCH, measured_in_words, predict_step
from precaudit.tensorcores.traces.analysis import analyse
from precaudit.tensorcores.traces.evidence import second_opinion
from precaudit.tensorcores.traces.kernel_rules import Classification
from precaudit.tensorcores.traces.trace import read_trace

BF16, H100 = Plan(default="bfloat16"), get_gpu("h100")
SWEEP = [1.05**i for i in range(200)]


def notes(folder, events):
    return analyse(read_trace(write(folder, document(events)))).tensor_cores.notes


@pytest.mark.parametrize(("share", "told"), [(0.04, False), (0.06, True)])
def test_communication(tmp_path, share, told):
    reduce = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
    events = [*launched(reduce, 0, 1000 * share, 1), *launched(NVJET, 2000, 1000 * (1 - share), 2)]
    assert any("communication" in note for note in notes(tmp_path, events)) == told


@pytest.mark.parametrize(("share", "told"), [(0.0005, False), (0.002, True)])
def test_kernels_launched_before_the_recording(tmp_path, share, told):
    early = span("kernel", ADD, 1, 1000 * share, 7, correlation=99)
    events = [early, *launched(NVJET, 2000, 1000 * (1 - share), 2)]
    assert any("before the recording" in note for note in notes(tmp_path, events)) == told


def test_kernels_that_name_no_launch_are_neither_early_nor_lost(tmp_path):
    call, kernel = launched(NVJET, 0, 1000, 1)
    del kernel["args"]["correlation"]
    found = "\n".join(notes(tmp_path, [call, kernel]))
    assert "doesn't say which call launched a kernel" in found
    assert "before the recording" not in found
    assert "not in the trace" not in found


@pytest.mark.parametrize(("lost", "told"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("call", ["cudaLaunchKernel", "cudaMemcpyAsync", "cudaGraphLaunch"])
def test_kernels_that_were_launched_and_not_recorded(tmp_path, lost, told, call):
    events = [event for i in range(100) for event in launched(ADD, 10 * i, 5, i)]
    events = [e | {"name": call} if e["args"]["correlation"] < lost and e["cat"] != "kernel" else e for e in events]
    kept = [e for e in events if e["cat"] != "kernel" or e["args"]["correlation"] >= lost]
    found = any("launched kernels are not in the trace" in note for note in notes(tmp_path, kept))
    assert found == (told and call == "cudaLaunchKernel")


@pytest.mark.parametrize(("end", "told"), [(b"]", False), (b"]\n", False), (b",", True), (b"", True)])
def test_a_list_of_events_without_its_end(tmp_path, end, told):
    text = json.dumps(launched(ADD, 0, 1, 1)).encode().removesuffix(b"]") + end
    found = analyse(read_trace(write(tmp_path, text))).tensor_cores.notes
    assert any("no end: it may have been cut off" in note for note in found) == told


@pytest.mark.parametrize(("share", "told"), [(0.005, False), (0.02, True)])
@pytest.mark.parametrize(("rate", "slow"), [(30, True), (40, False)])
def test_a_tensor_core_kernel_at_a_vector_rate(tmp_path, share, told, rate, slow):
    """Half of the vector units' 67 TFLOP/s, in kernels that matter."""
    size = 4096
    microseconds = 2 * size**3 / rate / 1e6
    events = [mm(0, 50, size, size, size), *launched(NVJET, 5, microseconds, 1)]
    events += launched(ADD, 10**6, microseconds * (1 / share - 1), 2)
    assert any("a rate of vector units" in note for note in notes(tmp_path, events)) == (told and slow)


def test_kernels_at_a_vector_rate_are_told_once_a_rule(tmp_path):
    events, size = [], 2048
    for i in range(6):
        at = 10**4 * i
        events += [module(f"Linear_{i % 3}", at, 100), mm(at, 50, size, size, size)]
        events += launched(f"{NVJET}{i}", at + 5, 2 * size**3 / 30 / 1e6, i)
    (note,) = (note for note in notes(tmp_path, events) if "a rate of vector units" in note)
    assert note.startswith("Linear_0 and 2 more: Tensor Core kernels by name (nvjet_")
    assert "run at 30 TFLOP/s" in note


@pytest.mark.parametrize(("kind", "times"), [("c10::BFloat16", 4.0), ("c10::Half", 4.0), ("float", 1.0)])
@pytest.mark.parametrize("above", [False, True])
def test_a_rate_above_vector_units_proves_tensor_cores(tmp_path, kind, times, above):
    """Packed halves at four times the rate of float32, and a tenth for the figures' inexactness."""
    rate, size = times * 67 * (1.15 if above else 1.05), 4096
    events = [mm(0, 50, size, size, size, kind), *launched("somebodys_kernel", 5, 2 * size**3 / rate / 1e6, 1)]
    (kernel,) = analyse(read_trace(write(tmp_path, document(events)))).tensor_cores.kernels
    assert kernel.rule == ("throughput" if above else "no-rule")


@pytest.mark.parametrize(("share", "tensor_core"), [(0.74, "unknown"), (0.76, "native")])
def test_a_rate_near_the_peak_proves_the_native_path(share, tensor_core):
    unknown = Classification("unknown", "triton", None, "bf16")
    assert second_opinion(unknown, share * 989.5, 67.0, 989.5).tensor_core == tensor_core


@pytest.mark.parametrize(("busy", "told"), [(0.49, True), (0.51, False)])
def test_a_gpu_that_waits_for_the_host(busy, told):
    assert ("waits for the host" in measured_in_words(1.5, [1.4, 1.6], busy, H100)) == told


def test_a_cast_and_its_gradients_are_launched_once_each():
    layer, small = Layer("layer", "Linear", 64, 1, ()), linear(8, 8, 8)
    seconds = [predict_step([small], [layer], plan, H100).seconds_launch for plan in (Plan(), BF16)]
    assert seconds[1] - seconds[0] == pytest.approx(2 * LAUNCH)


def padded(columns=4100):
    """Findings about a product that is ever less of a step, the largest share first."""
    product = linear(2**15, 4096, columns, fqn="unaligned")
    sizes = [linear(2**15, 4096, 128 * round(4 * factor), fqn="aligned") for factor in SWEEP]
    return [finding for other in sizes for finding in alignment_findings([product, other], BF16, H100)]


def test_how_much_padding_must_save_to_be_reported():
    """A dear padding, that is no slight one: told from a hundredth of a step on."""
    shares = [finding.evidence["share_of_step"] for finding in padded(columns=60)]
    assert 0.01 <= min(shares) < 0.012


def test_how_much_padding_must_save_for_a_warning():
    shares = {"note": [], "warning": []}
    for finding in padded():
        shares[finding.severity].append(finding.evidence["share_of_step"])
    assert 0.05 < min(shares["warning"]) < 0.056
    assert 0.045 < max(shares["note"]) <= 0.05


@pytest.mark.parametrize(("size", "target", "told"), [(148, 152, True), (60, 64, False)])
def test_a_cheap_padding_that_saves_nothing_yet_is_reported(size, target, told):
    found = alignment_findings([linear(64, 256, size)], BF16, H100)
    assert [finding.evidence["padding"]["out_features"]["pad_to"] for finding in found] == [target] * told


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8_e4m3": torch.float8_e4m3fn, "int8": torch.int8}


@pytest.mark.parametrize(("name", "dtype"), [*DTYPES.items(), ("float32", torch.float32), ("tf32", torch.float32)])
def test_a_multiple_fills_16_bytes_of_torch_s_dtype(name, dtype):
    assert multiple(name) * dtype.itemsize == 16


@pytest.mark.parametrize(("size", "urged"), [(7 * 4 + 1, True), (25, False)])
def test_an_expensive_padding_is_only_mentioned(size, urged):
    """To 32: a tenth more work, and 28% more."""
    assert advice(misaligned([("N", size)], "bf16")).startswith("pad" if urged else "measure before you pad")


@pytest.mark.parametrize(("rows", "told"), [(21 * 96, False), (17 * 96, True)])
def test_unknown_products_are_reported_from_a_twentieth_of_the_work(rows, told):
    assert bool(unreached_findings([linear(rows, 32, 64), grouped()], BF16)) == told
