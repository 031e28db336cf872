"""Time and memory of reading a trace, against decompressing and parsing it alone, and how both grow.

    python tests/benchmarks/bench_trace.py [TRACE.json.gz]

Without a file a synthetic training trace of about 50 MB is made, and one ten times smaller to see the growth from.
Every measurement is a process of its own, the median of three; memory is the peak of the whole process.
"""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARSE = "import gzip, orjson; document = orjson.loads(gzip.open(PATH).read())"
READ = (
    "from pathlib import Path; from precaudit.tensorcores.traces.trace import read_trace; "
    "from precaudit.tensorcores.traces.analysis import analyse; analyse(read_trace(Path(PATH)))"
)
MEASURE = """
import resource, time
PATH = {path!r}
start, cpu = time.perf_counter(), time.process_time()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, time.process_time() - cpu, peak * 1024)
"""


def measure(code: str, path: Path) -> tuple[float, float, float]:
    """Median wall seconds, CPU seconds and peak bytes of three processes."""
    script = MEASURE.format(path=str(path), code=code)
    runs = [subprocess.run([sys.executable, "-c", script], check=True, capture_output=True) for _ in range(3)]
    wall, cpu, peak = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return statistics.median(wall), statistics.median(cpu), statistics.median(peak)


def step(number: int, layers: int) -> Iterator[dict[str, Any]]:
    """One training step of `layers` linear layers as torch.profiler records it, Python functions and all."""
    clock = number * 1e6
    for layer in range(layers):
        base, key = clock + layer * 100, number * layers + layer
        where = {"pid": 7, "ph": "X"}
        for depth in range(6):
            name = f"nn.Module: Linear_{layer}" if depth == 5 else f"torch/nn/modules/module.py({depth}): _call_impl"
            arguments = {"Python id": key * 6 + depth, "Python parent id": key, "Ev Idx": key}
            span = {"ts": base + depth, "dur": 90.125 - 2 * depth, "tid": 7}
            yield {**where, **span, "cat": "python_function", "name": name, "args": arguments}
        for op, offset in (("aten::linear", 8), ("aten::addmm", 10)):
            arguments = {
                "External id": key,
                "Sequence number": key,
                "Fwd thread id": 0,
                "Input Dims": [[768], [4096, 768], [768, 768], [], []],
                "Input type": ["c10::BFloat16"] * 3 + ["Scalar"] * 2,
                "Input Strides": [[1], [768, 1], [1, 768], [], []],
                "Concrete Inputs": ["", "", "", "1", "1"],
            }
            span = {"ts": base + offset, "dur": 60.5 - offset, "tid": 7}
            yield {**where, **span, "cat": "cpu_op", "name": op, "args": arguments}
        for thread, kernel in (
            (7, "nvjet_tst_128x128_64x4_1x2_h_bz_coopA_NNT"),
            (8, "ampere_bf16_s16816gemm_bf16_128x64"),
        ):
            correlation = 2 * key + (thread == 8)
            arguments = {"correlation": correlation, "cbid": 211, "External id": key}
            span = {"ts": base + 20, "dur": 5.25, "tid": thread}
            yield {**where, **span, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "args": arguments}
            yield {
                "ph": "s",
                "id": correlation,
                "pid": 7,
                "tid": thread,
                "ts": base + 20,
                "cat": "ac2g",
                "name": "ac2g",
            }
            arguments = {**arguments, "device": 0, "stream": 7, "grid": [12, 32, 1], "block": [128, 1, 1]}
            span = {"ts": base + 40, "dur": 12.032, "tid": 7, "pid": 0}
            yield {**where, **span, "cat": "kernel", "name": kernel, "args": arguments}
        backward = {"Sequence number": key, "Fwd thread id": 1, "External id": key}
        name = "autograd::engine::evaluate_function: AddmmBackward0"
        yield {**where, "tid": 8, "ts": base + 15, "dur": 40.0, "cat": "cpu_op", "name": name, "args": backward}


def synthetic(path: Path, steps: int, layers: int = 100) -> Path:
    head = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "computeMajor": 9}]}
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        separator = ""
        for event in (event for number in range(steps) for event in step(number, layers)):
            file.write(separator + json.dumps(event, indent=1))
            separator = ",\n"
        file.write("\n]}")
    return path


def report(path: Path) -> tuple[int, float, float]:
    """Print the ratios for one file; its uncompressed size, the reader's CPU seconds and peak memory are returned."""
    with gzip.open(path) as file:
        size = sum(len(block) for block in iter(lambda: file.read(1 << 22), b""))
    parse, read = measure(PARSE, path), measure(READ, path)
    print(f"{path.name}: {size / 1e6:.1f} MB uncompressed")
    print(f"  decompress and orjson.loads: {parse[0]:.2f} s wall, {parse[1]:.2f} s CPU, {parse[2] / 1e6:.0f} MB peak")
    print(f"  read, attribute, classify:   {read[0]:.2f} s wall, {read[1]:.2f} s CPU, {read[2] / 1e6:.0f} MB peak")
    print(f"  time: {read[0] / parse[0]:.2f}x wall, {read[1] / parse[1]:.2f}x CPU (target <= 1.5)")
    print(f"  memory: {read[2] / size:.2f}x the uncompressed file (target <= 3)")
    return size, read[1], read[2]


def main(arguments: list[str]) -> int:
    if arguments:
        report(Path(arguments[0]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        small = report(synthetic(Path(folder) / "small.json.gz", steps=12))
        large = report(synthetic(Path(folder) / "large.json.gz", steps=120))
    print(f"growth: {large[0] / small[0]:.1f}x the data, {large[1] / small[1]:.1f}x the CPU time")
    print(
        f"        {(large[2] - small[2]) / (large[0] - small[0]):.2f} bytes of memory for every further byte of trace"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
