"""What runs on a GPU, run where there is none: on a CUDA device made of the CPU's memory, with torch's own dispatcher,
autocast and autograd for CUDA above it. Its speed means nothing; that all of it is measured does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

HERE = Path(__file__).parent
STANDIN = HERE / "standin"
SOURCE = STANDIN / "device.cpp"
TESTED = (2, 13)  # the device is written against this version's C++ interface
GPU_TESTS = ("checking/test_check", "execution/test_float8", "planning/test_loss_scale", "tensorcores/test_runtime")
ARMS = {"float32", "tf32", "amp", "plan"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="for a torch without CUDA"),
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler"),
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) != TESTED, reason="the device is for another version of torch"
    ),
]


@pytest.fixture(scope="session")
def on_standin(tmp_path_factory):
    """The environment of a process that has the device; workers compile it once."""
    library = tmp_path_factory.getbasetemp().parent / "standin.so"
    with FileLock(f"{library}.lock"):
        if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:  # left by an earlier run
            compile_device(library)
    return {**os.environ, "STANDIN": str(library), "PYTHONPATH": f"{STANDIN}{os.pathsep}{HERE.parents[1]}"}


def compile_device(library):
    home = Path(torch.__file__).parent
    include = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    link = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", *include, str(SOURCE), "-o", str(library), *link]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(environment, *arguments):
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=280)


def test_a_profile_is_native_and_measures_all_that_a_gpu_can_tell(on_standin, tmp_path):
    script = str(STANDIN / "train.py")
    options = ["--quick", "--steps", "16", "--price", "3", "--out", str(tmp_path)]
    done = run(on_standin, "-m", "precaudit", "profile", *options, script)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())

    assert report["verification"]["execution"] == "native"
    assert report["verification"]["verdict"] == "screened"
    assert report["job"]["baseline"]["autocast"] == "float16"
    assert report["environment"]["device"] == "Stand-in for an NVIDIA H100"
    assert {layer["fqn"] for layer in report["layers"]} >= {"1.qkv", "1.proj", "3"}

    timed = report["performance"]
    assert set(timed["step_seconds"]) == set(timed["peak_memory_bytes"]) == ARMS
    assert all(timed["energy_joules_per_step"][arm] > 0 for arm in ARMS)
    assert timed["tensor_pipe_share"] == dict.fromkeys(ARMS, 0.42)
    assert timed["tensor_pipe_share_by_layer"]
    assert timed["prediction_error"].keys() == {"float32", "plan"}
    assert report["cost"]["usd_per_thousand_steps_plan"] > 0

    layers = {layer["fqn"]: layer for layer in report["tensor_cores"]["layers"]}
    for fqn in ("1.qkv", "1.fc", "1.out"):
        assert layers[fqn]["time_share"]["native"] > 0.3, fqn
        assert layers[fqn]["before"]["time_share"]["native"] == 0, fqn


def test_gradients_err_natively_as_they_do_emulated(on_standin, tmp_path):
    done = run({**on_standin, "LIMIT": "200"}, str(HERE / "stage_gradients.py"), "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gradients.json").read_text())["results"]
    for model, formats in (("gpt", ("bfloat16", "float16", "float8_e4m3")), ("cnn", ("float16",))):
        for name in formats:
            assert results[model][name]["ratio"] == pytest.approx(1, abs=0.02), (model, name)
            assert results[model][name]["correlation"] > 0.99, (model, name)


def test_tests_for_a_gpu_pass(on_standin):
    files = [str(HERE.parent / f"{name}.py") for name in GPU_TESTS]
    done = run(on_standin, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", *files)
    assert done.returncode == 0, done.stdout + done.stderr
