"""The Triton kernel: by its interpreter in a process of its own, by its compiler, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch
from histogram_reference import FLOATING, every_pattern, random_patterns, reference, same

from precaudit.histograms import Accumulator, observe

INTERPRETED = """
from histogram_reference import *
from precaudit.histograms.gpu import TritonSums

for dtype in FLOATING:
    sums = TritonSums(dtype, torch.device("cpu"))
    patterns = every_pattern(dtype) if dtype.itemsize == 2 else random_patterns(dtype, 20_000)
    parts = [patterns, torch.randn(5).to(dtype), torch.zeros(3000, dtype=dtype), torch.empty(0, dtype=dtype)]
    for part in parts:
        sums.add(part)
    assert same(stats_of(sums), reference(*parts)), dtype
sums = TritonSums(torch.float32, torch.device("cpu"))
sums.add_difference(torch.full((5000,), 3.0), torch.ones(5000))
assert stats_of(sums) == reference(torch.full((5000,), 2.0))
"""

COMPILED = """
import precaudit.histograms.gpu as gpu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

for pointer, layout in (("*fp32", gpu.FLOAT32), ("*i16", gpu.FLOAT32), ("*fp64", gpu.FLOAT64)):
    constants = dict(WIDE=layout is gpu.FLOAT64, BRAIN=pointer == '*i16', MANTISSA=layout.mantissa, BLOCK=gpu.BLOCK)
    constants |= dict(EXPONENTS=2**layout.exponent_bits, AMAX=0, SMALLEST=1, SUM_SQUARES=2, COUNTS=3)
    signature = {"values": pointer, "row": "*i64", "sums": "*fp64", "numel": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=gpu._accumulate, signature=signature, constexprs=constants)
    assert "atom" in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


def run_python(code: str, **environment: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr


def test_interpreted_kernel_counts_as_defined():
    pytest.importorskip("triton")
    run_python(INTERPRETED, TRITON_INTERPRET="1")


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
    expected = reference(patterns).merge(observe(patterns - patterns))
    assert same(accumulator.stats(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_mix_in_one_slot():
    values = torch.randn(1000)
    accumulator = Accumulator()
    accumulator.add(values)
    accumulator.add(values.cuda().t())
    accumulator.add(values.cuda().to(torch.float8_e5m2))
    assert same(accumulator.stats(), reference(values, values, values.to(torch.float8_e5m2)))
