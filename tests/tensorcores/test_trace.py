from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_builder import ADD, NVJET, document, launched, mm, module, op, span, write

from precaudit.errors import ExitCode, PrecauditError
from precaudit.tensorcores.traces.analysis import analyse
from precaudit.tensorcores.traces.attribution import (
    ACCUMULATION,
    COMMUNICATION,
    NOT_LAUNCHED,
    OPTIMIZER,
    OUTSIDE,
    UNATTRIBUTED,
    attribute,
    nest,
)
from precaudit.tensorcores.traces.trace import Device, Intervals, read_trace


def owners(trace):
    attribution = attribute(trace)
    return [attribution.owners[i] for i in attribution.owner.tolist()]


def read(folder, events, **metadata):
    return read_trace(write(folder, document(events, **metadata)))


def test_kernels_ops_and_the_gpu(tmp_path):
    trace = read(tmp_path, [mm(0, 50, 64, 32, 16), *launched(NVJET, 10, 7, 1)])
    assert trace.kernels.seconds.tolist() == [7e-6]
    assert [trace.names[i] for i in trace.kernels.name] == [NVJET]
    assert trace.arguments[0].dims == ((64, 16), (16, 32))
    assert trace.devices == (Device("NVIDIA H100 80GB HBM3", (9, 0), nvidia=True),)


def test_the_gpu_in_the_words_of_pytorch_1_9_and_of_exporters_that_write_all_as_text(tmp_path):
    old = {"id": 0, "name": "Tesla V100-DGXS-32GB", "major": 7, "minor": 0}
    trace = read_trace(write(tmp_path, document(launched(ADD, 0, 1, 1), None, computeProperties=[old])))
    assert trace.devices == (Device("Tesla V100-DGXS-32GB", (7, 0)),)
    text = {"id": "0", "name": "NVIDIA H100 PCIe", "computeMajor": "9", "computeMinor": "0"}
    trace = read(tmp_path, launched(ADD, 0, 1, 1), deviceProperties=[text])
    assert trace.devices == (Device("NVIDIA H100 PCIe", (9, 0)),)


def test_the_format_of_2021(tmp_path):
    """Categories were capitalised, thread ids text, and the correlation of a kernel stood beside `external id`."""
    events = [mm(0, 50, 64, 32, 16), *launched(NVJET, 10, 7, 1), *launched(ADD, 60, 3, 2)]
    renamed = {"cpu_op": "Operator", "cuda_runtime": "Runtime", "kernel": "Kernel"}
    old = [event | {"cat": renamed[event["cat"]], "tid": str(event["tid"])} for event in events]
    attribution = attribute(trace := read(tmp_path, old))
    assert attribution.op.tolist() == [0, -1]
    assert trace.kernels.seconds.sum() == pytest.approx(10e-6)


def test_a_kernel_goes_to_the_innermost_op_on_its_own_thread(tmp_path):
    events = [
        op("aten::linear", 0, 100),
        op("aten::addmm", 10, 50),
        op("aten::elsewhere", 10, 50, thread=2),
        *launched(NVJET, 20, 7, 1),
        *launched(ADD, 70, 7, 2),
        *launched(ADD, 20, 7, 3, thread=2),
        *launched(ADD, 200, 7, 4),
    ]
    trace = read(tmp_path, events)
    ops = attribute(trace).op.tolist()
    assert [trace.names[trace.ops.name[i]] if i >= 0 else None for i in ops] == [
        "aten::addmm",
        "aten::linear",
        "aten::elsewhere",
        None,
    ]


def test_forward_modules_and_buckets(tmp_path):
    events = [
        module("Net_0", 0, 100),
        module("Linear_3", 10, 30),
        op("aten::linear", 12, 20),
        *launched(NVJET, 14, 7, 1),
        op("aten::relu", 50, 10),
        *launched(ADD, 52, 7, 2),
        op("aten::mse_loss", 110, 10),
        *launched(ADD, 112, 7, 3),
        span("user_annotation", "Optimizer.step#SGD.step", 130, 40),
        op("aten::add_", 132, 10),
        *launched(ADD, 134, 7, 4),
        op("torch::autograd::AccumulateGrad", 200, 20, thread=2),
        op("aten::mul", 205, 8, thread=2),
        *launched(ADD, 207, 7, 5, thread=2),
        *launched("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 300, 7, 6),
        *launched(ADD, 320, 7, 7),
        span("kernel", ADD, 1, 2, 7, correlation=99),
    ]
    assert owners(read(tmp_path, events)) == [
        "Linear_3",
        "Net_0",
        OUTSIDE,
        OPTIMIZER,
        ACCUMULATION,
        COMMUNICATION,
        UNATTRIBUTED,
        NOT_LAUNCHED,
    ]


def forward_and_backward(numbered=True, flows=False):
    numbers = {"Sequence_number": 7, "Fwd_thread_id": 0} if numbered else {}
    backward = {"Sequence_number": 7, "Fwd_thread_id": 1} if numbered else {}
    events = [
        module("Net_0", 0, 100),
        module("Linear_3", 10, 30),
        op("aten::addmm", 12, 20, **numbers),
        *launched(NVJET, 14, 7, 1),
        op("autograd::engine::evaluate_function: AddmmBackward0", 200, 60, thread=2, **backward),
        op("AddmmBackward0", 205, 50, thread=2),
        op("aten::mm", 210, 20, thread=2),
        *launched(NVJET, 214, 7, 2, thread=2),
    ]
    if flows:
        arrow = {"cat": "fwdbwd", "name": "fwdbwd", "pid": 1, "id": 4}
        events += [arrow | {"ph": "s", "tid": 1, "ts": 12}, arrow | {"ph": "f", "tid": 2, "ts": 205}]
    return events


@pytest.mark.parametrize(("numbered", "flows"), [(True, False), (False, True), (True, True)])
def test_backward_belongs_to_the_module_of_its_forward_op(tmp_path, numbered, flows):
    assert owners(read(tmp_path, forward_and_backward(numbered, flows))) == ["Linear_3", "Linear_3"]


def test_backward_without_numbers_or_arrows_is_outside_modules(tmp_path):
    assert owners(read(tmp_path, forward_and_backward(numbered=False))) == ["Linear_3", OUTSIDE]


def test_recomputed_forward_keeps_its_own_module(tmp_path):
    """Checkpointing runs modules again inside a backward op: those are named, not the op's own forward module."""
    events = forward_and_backward()
    events += [module("Inner_5", 235, 15, thread=2), op("aten::mul", 238, 4, thread=2)]
    events += launched(ADD, 240, 7, 3, thread=2)
    assert owners(read(tmp_path, events)) == ["Linear_3", "Linear_3", "Inner_5"]


def test_recomputed_forwards_on_the_same_thread_are_resolved_by_arrows(tmp_path):
    """Checkpointing repeats a forward on autograd's thread, which counts its ops from 0 again."""
    events = [
        module("First_0", 0, 40),
        op("aten::addmm", 12, 20, Sequence_number=7),
        module("Again_1", 150, 40, thread=2),
        op("aten::addmm", 155, 30, thread=2, Sequence_number=7),
        op("autograd::engine::evaluate_function", 200, 60, thread=2, Sequence_number=7, Fwd_thread_id=2),
        op("AddmmBackward0", 205, 40, thread=2, Sequence_number=7, Fwd_thread_id=2),
        *launched(NVJET, 214, 7, 1, thread=2),
        *launched(ADD, 250, 7, 2, thread=2),
        op("aten::addmm", 300, 20, Sequence_number=7),
    ]
    arrow = {"cat": "fwdbwd", "name": "fwdbwd", "pid": 1, "id": 4}
    events += [arrow | {"ph": "s", "tid": 2, "ts": 155}, arrow | {"ph": "f", "tid": 2, "ts": 205}]
    assert owners(read(tmp_path, events)) == ["Again_1", "Again_1"]


@pytest.mark.parametrize("flows", [False, True])
def test_the_second_backward_pass_belongs_to_the_module_of_the_forward_op(tmp_path, flows):
    """As of a gradient penalty: what it comes from ran in the first backward pass, outside of any module."""
    first = op("AddmmBackward0", 205, 50, thread=2, Sequence_number=7, Fwd_thread_id=1)
    events = [
        module("Linear_3", 10, 30),
        op("aten::addmm", 12, 20, Sequence_number=7),
        first,
        op("aten::mm", 210, 20, thread=2, Sequence_number=9, Fwd_thread_id=0),
        op("MmBackward0", 300, 50, thread=2, Sequence_number=9, Fwd_thread_id=2),
        op("aten::mm", 310, 20, thread=2),
        *launched(NVJET, 314, 7, 1, thread=2),
    ]
    if flows:
        arrow = {"cat": "fwdbwd", "name": "fwdbwd", "pid": 1, "bp": "e"}
        pairs = [(1, 12, 2, 205), (2, 210, 2, 300)]
        for number, (source, start, target, end) in enumerate(pairs):
            events += [arrow | {"id": number, "ph": "s", "tid": source, "ts": start}]
            events += [arrow | {"id": number, "ph": "f", "tid": target, "ts": end}]
    assert owners(read(tmp_path, events)) == ["Linear_3"]


@pytest.mark.parametrize("offset", [0, 3, 1000])
def test_processes_in_one_file_are_kept_apart(tmp_path, offset):
    """Each counts its launches, its ops and its arrows for itself."""
    one, other = forward_and_backward(flows=True), forward_and_backward(flows=True)
    for event in other:
        event["pid"] = 2 if event["pid"] == 1 else 1  # kernels are under the number of their GPU
        event["ts"] += offset
        event["name"] = event["name"].replace("Linear_3", "Conv_4")
    backward_first = sorted(one + other, key=lambda event: -event["ts"])
    trace = read(tmp_path, backward_first)
    assert sorted(zip(trace.kernels.start.tolist(), owners(trace), strict=True)) == sorted(
        (start + delay, name) for start in (19, 219) for delay, name in ((0, "Linear_3"), (offset, "Conv_4"))
    )
    assert len(set(attribute(trace).op.tolist())) == 4


@pytest.mark.parametrize("named", [lambda n: n, lambda n: f"{n}", lambda n: f"python {n}"])
def test_process_and_thread_ids_may_be_text(tmp_path, named):
    events = [event | {"pid": named(event["pid"]), "tid": named(event["tid"])} for event in forward_and_backward()]
    trace = read(tmp_path, events)
    assert set(trace.processes.tolist()) == {0}
    assert owners(trace) == ["Linear_3", "Linear_3"]


@pytest.mark.parametrize("key", ["External_id", "external_id"])
def test_launches_without_a_correlation_are_linked_by_the_id_that_kernels_share(tmp_path, key):
    call = span("cuda_runtime", "cudaLaunchKernel", 5, 1, **{key: 7})
    kernel = span("kernel", ADD, 20, 5, 7, device=0, **{key: 7})
    trace = read(tmp_path, [op("aten::add", 0, 10), call, kernel])
    assert (attribute(trace).op.tolist(), trace.malformed) == ([0], 0)


def test_a_correlation_number_used_twice_is_that_of_the_latest_launch(tmp_path):
    events = [op("aten::mm", 0, 20), *launched(NVJET, 5, 7, 1), op("aten::add", 100, 20), *launched(ADD, 105, 7, 1)]
    trace = read(tmp_path, events)
    assert [trace.names[trace.ops.name[i]] for i in attribute(trace).op.tolist()] == ["aten::mm", "aten::add"]


def test_a_kernel_that_seems_to_start_before_its_launch_is_matched(tmp_path):
    call, kernel = launched(NVJET, 5, 7, 1)
    assert attribute(read(tmp_path, [op("aten::mm", 0, 20), call, kernel | {"ts": 1}])).op.tolist() == [0]


def test_scopes_of_our_own_profiled_steps(tmp_path):
    events = [span("user_annotation", "fwd::blocks.0.mlp", 0, 50), op("aten::mm", 5, 20), *launched(NVJET, 8, 7, 1)]
    assert owners(read(tmp_path, events)) == ["blocks.0.mlp"]


NO_KERNELS = [
    pytest.param([op("aten::mm", 0, 5)], r"no GPU kernels among its 1 events \(1 CPU ops\)", id="cpu-only"),
    pytest.param([], "no CPU op either", id="no-events"),
    pytest.param(
        [{"ph": "X", "cat": "cuda", "name": NVJET, "ts": 1, "dur": 5}], "another tool wrote it", id="nsys2json"
    ),
    pytest.param([{"ph": "X", "name": NVJET, "ts": 1, "dur": 5}], "another tool wrote it", id="jax"),
    pytest.param(
        [{"name": "aten::mm", "ph": "X", "ts": 1, "dur": 5, "tid": 1, "pid": "CPU functions", "args": {}}],
        "torch.autograd.profiler, which names no kernels",
        id="autograd-profiler",
    ),
    pytest.param([span("cuda_profiler_range", ADD, 0, 5)], "1 CUPTI counter ranges", id="counters"),
    pytest.param(launched(ADD, 0, 0, 1), "1 of its 1 GPU kernels have no time", id="no-duration"),
    pytest.param(
        [*launched(NVJET, 0, 5, 1), *launched(ADD, 9, -1, 2), *launched(ADD, 9, 0, 3)],
        "2 of its 3 GPU kernels have no time",
        id="most-without-duration",
    ),
    pytest.param([1, None, "x", [], {"cat": "kernel"}, {"cat": []}, {"cat": None}], "no GPU kernels", id="no-event"),
]


@pytest.mark.parametrize(("events", "message"), NO_KERNELS)
def test_nothing_to_measure(tmp_path, events, message):
    with pytest.raises(PrecauditError, match=message) as caught:
        read(tmp_path, events)
    assert caught.value.exit_code == ExitCode.NOTHING_TO_MEASURE


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(PrecauditError, match="is a folder"):
        read_trace(tmp_path)
    with pytest.raises(PrecauditError, match="does not exist"):
        read_trace(tmp_path / "none.json")


def test_an_amd_gpu_by_its_name_or_its_runtime(tmp_path):
    events = launched(ADD, 0, 5, 1)
    assert not read(tmp_path, events, deviceProperties=[{"id": 0, "name": "AMD Instinct MI300X"}]).devices[0].nvidia
    assert not read(tmp_path, events, deviceProperties=[{"id": 0, "name": ""}], hip_driver_version=6).devices[0].nvidia
    assert read(tmp_path, events, deviceProperties="garbage").devices == (None,)
    assert not read(tmp_path, events, deviceProperties=[], hip_runtime_version=6).devices[0].nvidia
    assert not read(tmp_path, events, deviceProperties=[{"id": 0, "name": "Ascend910B3"}]).devices[0].nvidia
    assert not read(tmp_path, events, deviceProperties=[{"id": 0, "name": "Iluvatar BI-V100"}]).devices[0].nvidia


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ({"cat": "xpu_runtime", "name": "urEnqueueKernelLaunch"}, "unnamed XPU GPU"),
        ({"cat": "mtia_runtime"}, "unnamed MTIA GPU"),
        ({"name": "hipLaunchKernel"}, "unnamed AMD GPU"),
        ({"cat": "cuda_driver", "name": "cuLaunchKernel"}, None),
        ({"cat": "Runtime"}, None),
    ],
)
def test_an_undescribed_gpu_is_identified_by_its_launches(tmp_path, call, name):
    launch, kernel = launched("gemm_kernel", 5, 7, 1)
    (device,) = read_trace(write(tmp_path, document([launch | call, kernel], None))).devices
    assert device == (Device(name, None, nvidia=False) if name else None)


@pytest.mark.parametrize("duration", [-30, 1e308, "nan", None])
def test_impossible_kernel_times_are_malformed(tmp_path, duration):
    call, kernel = launched(NVJET, 0, 5, 1)
    trace = read(tmp_path, [call, kernel | {"dur": duration}, *launched(ADD, 10, 7, 2)])
    assert trace.kernels.seconds.tolist() == [7e-6]
    assert trace.malformed == 1


@pytest.mark.parametrize("runtime", ["xpu_runtime", "mtia_runtime", "privateuse1_driver", "hip_runtime", "mlu_runtime"])
def test_launches_of_other_backends(tmp_path, runtime):
    call, kernel = launched("gemm_kernel", 5, 7, 1)
    assert attribute(read(tmp_path, [op("aten::mm", 0, 50), call | {"cat": runtime}, kernel])).op.tolist() == [0]


junk = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(width=32)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
keys = st.sampled_from(["cat", "name", "ts", "dur", "pid", "tid", "args", "id", "ph"])
categories = st.sampled_from(
    ["kernel", "Kernel", "cpu_op", "cuda_runtime", "fwdbwd", "python_function", "user_annotation"]
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(categories, st.dictionaries(keys, junk)), max_size=12))
def test_events_of_any_kind_are_read_or_counted(tmp_path_factory, changes):
    """Each change overwrites fields of a good event, so that every taker meets every kind of wrong value."""
    base = mm(0, 50, 4, 4, 4) | {"id": 1, "ph": "s"}
    events = [{**base, "cat": category, **change} for category, change in changes]
    good = [event for i in range(12) for event in launched(NVJET, 1 + i, 3, i)]
    trace = read(tmp_path_factory.mktemp("junk"), [*good, *events])
    assert len(attribute(trace).owner) == len(trace.kernels.seconds)
    assert np.isfinite(trace.kernels.seconds).all()
    assert analyse(trace).tensor_cores.kernels


def test_an_op_that_is_malformed_leaves_no_arguments(tmp_path):
    late = mm(900, 50, 64, 64, 64)
    del late["ts"]
    trace = read(tmp_path, [mm(0, 50, 4, 4, 4), *launched(NVJET, 1, 3, 1), late])
    assert (trace.malformed, list(trace.arguments)) == (1, [0])
    assert analyse(trace).tensor_cores.kernels[0].tflops == pytest.approx(2 * 4**3 / 3e-6 / 1e12)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=25),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=20),
)
def test_innermost_matches_brute_force_on_nested_intervals(spans, asked):
    spans = _nested(spans)
    columns = np.array(spans, dtype=np.float64).reshape(-1, 3)
    thread = columns[:, 0].astype(np.int64)
    intervals = Intervals(np.arange(len(spans)), thread, columns[:, 1], columns[:, 2])
    threads, times = np.array(asked, dtype=np.int64).T
    found = nest(intervals).innermost(threads, times.astype(np.float64))
    for thread, time, index in zip(threads.tolist(), times.tolist(), found.tolist(), strict=True):
        around = [s for s in spans if s[0] == thread and s[1] <= time <= s[2]]
        if not around:
            assert index == -1
        elif not any(s[2] == time for s in around):  # at an end, where another may begin, either answer is right
            assert spans[index][2] - spans[index][1] == min(s[2] - s[1] for s in around)


def _nested(spans):
    """Spans (thread, start, end) of which any two on a thread are nested or apart, as calls are."""
    kept = []
    for thread, start, length in spans:
        end = start + length + 1
        crossing = [s for s in kept if s[0] == thread and (s[1] < start < s[2] < end or start < s[1] < end < s[2])]
        if not crossing:
            kept.append((thread, start, end))
    return kept


class Counted(np.ndarray):
    """An array of threads that counts the numbers which are read of it."""

    read = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counted.read += max(np.size(each) for each in inputs)
        return getattr(ufunc, method)(*(np.asarray(each) for each in inputs), **kwargs)

    def __getitem__(self, key):
        found = super().__getitem__(key)
        Counted.read += np.size(found)
        return found


def numbers_read(threads):
    """How many thread numbers are read to find what is around one launch on each thread."""
    thread = np.arange(threads).view(Counted)
    start = np.zeros(threads)
    intervals = Intervals(np.zeros(threads, dtype=np.int64), thread, start, start + 2)
    nesting, Counted.read = nest(intervals), 0
    assert nesting.innermost(thread, start + 1).tolist() == list(range(threads))
    return Counted.read


def test_finding_what_is_around_a_launch_is_linear_in_the_threads():
    """Servers and data loaders make thousands of them."""
    assert numbers_read(400) <= 5 * numbers_read(100)
