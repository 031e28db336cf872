"""The Triton kernel: by its interpreter in a process of its own, by its compiler, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch
from histogram_reference import FLOATING, every_pattern, random_patterns, reference, same

from precaudit.histograms import Accumulator, Addition, add_all, collect, observe, take_peak

INTERPRETED = """
import triton.runtime.interpreter as interpreter

# numpy takes an array of one element for an index no longer
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
interpreter._patch_lang_tensor = patched

from histogram_reference import *
from precaudit.histograms.gpu import MAX_STRETCH, MAX_TILES, TritonSums, Tuning

CPU = torch.device("cpu")

def check(*parts, tuning=None):
    sums = TritonSums(parts[0].dtype, CPU, tuning)
    for part in parts:
        sums.add(part)
    assert same(stats_of(sums), reference(*parts)), (parts, tuning)
"""

EVERYTHING = """
for dtype in FLOATING:
    patterns = every_pattern(dtype) if dtype.itemsize == 2 else random_patterns(dtype, 3_000)
    check(patterns, torch.randn(5).to(dtype), torch.zeros(3000, dtype=dtype), torch.empty(0, dtype=dtype))
sums = TritonSums(torch.float32, CPU)
sums.add_difference(torch.full((5000,), 3.0), torch.ones(5000))
assert stats_of(sums) == reference(torch.full((5000,), 2.0))
"""

MANY = """
from precaudit.histograms.gpu import add_many

for dtype in FLOATING:
    tensors = [torch.randn(numel).to(dtype) for numel in (5, 4096, 20_000)] + [torch.zeros(3000, dtype=dtype)]
    slots = [TritonSums(dtype, CPU) for _ in tensors]
    assert slots[0].entry(tensors[1][1:], None) is None, "not aligned"
    for _ in range(2):
        entries = [slot.entry(tensor, None) for slot, tensor in zip(slots, tensors)]
        add_many(dtype, CPU, entries, False)
    assert all(same(stats_of(slot), reference(tensor, tensor)) for slot, tensor in zip(slots, tensors))
from precaudit.histograms import gpu

for dtype in FLOATING:
    gpu.check(dtype, CPU)
right, gpu._accumulate = gpu._accumulate, gpu._accumulate_many
gpu._single.cache_clear()
try:
    gpu.check(torch.float32, CPU)
    raise SystemExit("a kernel that counts wrongly went unnoticed")
except Exception:
    gpu._accumulate = right
    gpu._single.cache_clear()

new, old = torch.randn(3000), torch.randn(3000)
slot = TritonSums(torch.float32, CPU)
add_many(torch.float32, CPU, [slot.entry(new, old)], True)
assert same(stats_of(slot), reference(new - old))
"""

WINDOWS = """
for tuning in (Tuning(), Tuning(window=32, headroom=4, warps=8)):
    stretch = min(MAX_STRETCH, MAX_TILES * tuning.tile)
    check(torch.full((stretch,), 0.75, dtype=torch.bfloat16), tuning=tuning)  # a full stretch of one binade
    check(torch.randn(2 * tuning.tile).half().clamp(min=0), torch.zeros(tuning.tile).half(), tuning=tuning)
    for place in (1, tuning.tile + 1):  # in the first tile, and past it
        for odd in (2.0**40, 2.0**-140, float("nan")):
            values = torch.randn(tuning.tile + 9)
            values[place] = odd
            check(values, tuning=tuning)
    reach = tuning.window - 2 - tuning.headroom  # binades below the first tile's largest that the window holds
    for at in (reach, reach + 1, -reach, -reach - 1):
        check(torch.tensor([1.0, 2.0**at]), torch.tensor([2.0**at, 0.0, 1.0]), tuning=tuning)
    for above in (tuning.headroom, tuning.headroom + 1):
        check(torch.cat([torch.ones(tuning.tile), torch.tensor([2.0**above])]), tuning=tuning)
    check(torch.tensor([3e38, 3e38, 1e-30]), tuning=tuning)  # squares past float32
    for exponent in range(-120, 120, 7):  # wherever the window begins
        check(torch.ldexp(torch.randn(90).clamp(-8, 8), torch.tensor(exponent)), torch.zeros(9), tuning=tuning)
check(torch.randn(5000).bfloat16()[1:], torch.randn(5000)[1:])  # not aligned
"""

COMPILED = """
import itertools

import precaudit.histograms.gpu as gpu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

for pointer in ("*fp32", "*i16", "*fp64"):
    dtype = {"*fp32": gpu.torch.float32, "*i16": gpu.torch.bfloat16, "*fp64": gpu.torch.float64}[pointer]
    tuning = gpu.tuning_of(dtype)
    constants = gpu._constants(False, tuning)
    signature = {"values": pointer, "other": pointer, "row": "*i64", "numel": "i32", "tiles": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(fn=gpu._accumulate, signature=signature, constexprs=constants, attrs=aligned)
    asm = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": tuning.warps}).asm
    assert "red" in asm["ptx"] or "atom" in asm["ptx"]
    assert "ld.global.v4.b32" in asm["ptx"] or "ld.global.v2.b64" in asm["ptx"], "a thread loads 16 bytes at a time"
    lines = iter(asm["ttgir"].splitlines())
    start = next(line for line in lines if "scf.for" in line)
    end = " " * (len(start) - len(start.lstrip())) + "}"
    loop = list(itertools.takewhile(lambda line: not line.startswith(end), lines))
    assert len(loop) > 100
    assert not any("convert_layout" in line for line in loop), "no value leaves its thread"
"""


def run_python(code: str, **environment: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [EVERYTHING, MANY, WINDOWS], ids=["everything", "many", "windows"])
def test_interpreted_kernel_counts_as_defined(code: str):
    pytest.importorskip("triton")
    run_python(INTERPRETED + code, TRITON_INTERPRET="1")


def test_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    run_python(COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", FLOATING)
def test_gpu_counts_as_defined_and_without_waiting(dtype: torch.dtype):
    patterns = every_pattern(dtype) if dtype.itemsize == 2 else random_patterns(dtype, 100_000)
    values = patterns.cuda()
    accumulator = Accumulator()
    observe(values)
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert accumulator.add(values) is None
        assert accumulator.add_difference(values, values) is None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {type(sums).__name__ for sums in accumulator._sums.values()} == {"TritonSums"}
    expected = reference(patterns).merge(observe(patterns - patterns))
    assert same(accumulator.stats(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_many_on_a_gpu_count_as_each_by_itself():
    tensors = [torch.randn(numel, device="cuda").to(dtype) for dtype in FLOATING for numel in (1, 4096, 1_000_001)]
    tensors += [tensors[0].new_empty(0), tensors[2][1:], tensors[2][:9000].view(90, 100).t()[::2]]
    slots = [Accumulator() for _ in tensors]
    add_all(Addition(slot, tensor) for slot, tensor in zip(slots, tensors, strict=True))
    add_all([Addition(slots[2], tensors[2] * 2, tensors[2])])
    expected = [[tensor] for tensor in tensors]
    expected[2].append(tensors[2])
    assert all(same(stats, reference(*parts)) for stats, parts in zip(collect(slots), expected, strict=True))
    assert take_peak(slots).value() == max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
    assert take_peak(slots).value() == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_mix_in_one_slot():
    values = torch.randn(1000)
    accumulator = Accumulator()
    accumulator.add(values)
    accumulator.add(values.cuda().t())
    accumulator.add(values.cuda().to(torch.float8_e5m2))
    assert same(accumulator.stats(), reference(values, values, values.to(torch.float8_e5m2)))
