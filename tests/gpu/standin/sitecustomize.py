"""Gives torch the CUDA device of device.cpp, in every process that has this folder in PYTHONPATH and the compiled
library in STANDIN: the library is loaded before torch asks for its hooks, and torch._C is completed before torch.cuda
is imported.

The device has NVML's counters, and torch.profiler sees one kernel for each innermost operation. Their figures are
made up.
"""

import ctypes
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parents[2] / "hardware"))
from fake_nvml import FakeNvml, card

GPU = SimpleNamespace(
    name="Stand-in for an NVIDIA H100",
    major=9,
    minor=0,
    total_memory=80 * 2**30,
    multi_processor_count=4,
    uuid="00000000-0000-0000-0000-000000000000",
)


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


class _Made:
    """torch's bases take arguments that say which stream or event is meant; here all are one."""

    def __new__(cls, *_arguments, **_options):
        return object.__new__(cls)


class Stream(_Made):
    cuda_stream = stream_id = device_index = priority = 0
    device_type = 1

    def __init__(self, *_arguments, **_options):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass


class Event(_Made):
    cuda_event = 0

    def __init__(self, *_arguments, **_options):
        self.at = 0.0

    def record(self, _stream=None):
        self.at = time.perf_counter()

    def wait(self, _stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000.0 * (end.at - self.at)


class Graph(_Made):
    def capture_begin(self, *_arguments, **_options):
        raise RuntimeError("the stand-in captures no graphs")


def complete(core):
    """What torch._C lacks of a torch with CUDA."""
    core._has_cuda = True
    core._CudaDeviceProperties = SimpleNamespace
    core._CudaStreamBase, core._CudaEventBase, core._CUDAGraph = Stream, Event, Graph
    constant = {
        "_cuda_init": None,
        "_cuda_getDevice": 0,
        "_cuda_getDeviceCount": 1,
        "_cuda_setDevice": None,
        "_cuda_exchangeDevice": 0,
        "_cuda_maybeExchangeDevice": 0,
        "_cuda_getCurrentRawStream": 0,
        "_cuda_getCurrentStream": (0, 0, 1),
        "_cuda_getDefaultStream": (0, 0, 1),
        "_cuda_setStream": None,
        "_cuda_synchronize": None,
        "_cuda_isCurrentStreamCapturing": False,
        "_cuda_isInBadFork": False,
        "_cuda_emptyCache": None,
        "_cuda_hasPrimaryContext": True,
        "_cuda_getArchFlags": "sm_90",
        "_cuda_get_sync_debug_mode": 0,
        "_graph_pool_handle": (0, 0),
    }
    for name, value in constant.items():
        setattr(core, name, lambda *_arguments, _value=value, **_options: _value)


def finish(torch, library):
    """What torch.cuda finds out by calls that a torch without CUDA lacks."""
    cuda, generator = torch.cuda, torch.default_generator
    torch.version.cuda = "13.0"
    cuda.get_device_properties = lambda *_device: GPU
    cuda._cudart = SimpleNamespace(cudaMemGetInfo=lambda _device: (70 * 2**30, GPU.total_memory))
    cuda.default_generators = (generator,)
    Stream.device = Event.device = torch.device("cuda", 0)
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda *_device: generator.get_state()
        module.set_rng_state = lambda state, *_device: generator.set_state(state)
        module.manual_seed = module.manual_seed_all = lambda seed: generator.manual_seed(seed)
    used, peak = library.standin_used, library.standin_peak
    used.restype = peak.restype = ctypes.c_int64

    def statistics(_device):
        now = {"current": used(), "peak": peak(), "allocated": peak(), "freed": 0}
        return {f"{kind}_bytes": {"all": now} for kind in ("allocated", "reserved", "active")}

    torch._C._cuda_memoryStats = statistics
    torch._C._cuda_resetPeakMemoryStats = lambda _device: library.standin_reset_peak()
    _let_storages_lie_there(torch)
    _show_kernels(torch.profiler.profile)


def _let_storages_lie_there(torch):
    """Copies and checkpoints of modules make their storages by themselves."""
    storage, new = torch.UntypedStorage, torch.UntypedStorage.__new__

    def made(cls, *arguments, device=None, **options):
        if device is None or torch.device(device).type != "cuda":
            return new(cls, *arguments, **options if device is None else {**options, "device": device})
        return torch.empty(*arguments or (0,), dtype=torch.uint8, device=device).untyped_storage()

    storage.__new__ = staticmethod(made)


def _show_kernels(profile):
    export = profile.export_chrome_trace

    def exported(self, path):
        export(self, path)
        trace = json.loads(Path(path).read_text())
        trace["deviceProperties"] = [{"id": 0, "name": GPU.name, "computeMajor": GPU.major, "computeMinor": GPU.minor}]
        trace["traceEvents"] += kernels(trace["traceEvents"])
        Path(path).write_text(json.dumps(trace))

    profile.export_chrome_trace = exported


def kernels(events):
    """A launch and a kernel, as long as its operation, for each product, and for each operation outside of them that
    contains no other."""
    ops = sorted((e for e in events if e.get("cat") == "cpu_op"), key=lambda e: (e["tid"], e["ts"], -e["dur"]))
    product_until = {}
    for number, (op, following) in enumerate(zip(ops, [*ops[1:], None], strict=True)):
        end = op["ts"] + op["dur"]
        if op["ts"] < product_until.get(op["tid"], 0):
            continue
        if op["name"] in PRODUCTS:
            product_until[op["tid"]] = end
        elif following and following["tid"] == op["tid"] and following["ts"] < end:
            continue
        ids = {"correlation": number, "External id": op["args"]["External id"]}
        launch = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 0, "args": ids}
        kernel = {"cat": "kernel", "name": kernel_of(op), "pid": 0, "tid": 7, "args": {**ids, "device": 0, "stream": 7}}
        yield {**op, **launch}
        yield {**op, **kernel}


def kernel_of(op):
    """A name that cuBLAS has for the product on an H100, by its operands' type; of other operations, PyTorch's."""
    if op["name"] not in PRODUCTS:
        return "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>"
    types = op["args"].get("Input type", [])
    if "c10::BFloat16" in types:
        return "nvjet_tst_128x64_64x6_2x1_v_bz_TNN"
    return "nvjet_hsh_128x64_64x6_2x1_v_bz_TNN" if "c10::Half" in types else "ampere_sgemm_128x64_tn"


class Nvml(FakeNvml):
    """A card of 300 W, whose Tensor Cores are busy for 42% of the time."""

    def nvmlDeviceGetTotalEnergyConsumption(self, _card):
        return int(300e3 * time.time())

    def nvmlGpmSampleGet(self, _card, sample):
        sample.counters = {self.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 42.0}


class Finder:
    """Steps in where torch and torch.cuda are imported, and finds nothing itself."""

    def __init__(self, library):
        self._library = library

    def find_spec(self, name, _path=None, _target=None):
        if name == "torch.cuda":
            complete(sys.modules["torch._C"])
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec("torch")
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            library = ctypes.CDLL(self._library)
            execute(module)
            finish(module, library)
            sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("STANDIN"):
    facts = {"uuid": f"GPU-{GPU.uuid}", "capability": (GPU.major, GPU.minor), "memory": GPU.total_memory, "gpm": 1}
    sys.modules["pynvml"] = Nvml(card(GPU.name, **facts))
    sys.meta_path.insert(0, Finder(os.environ["STANDIN"]))
