"""The GPU stages where there is no GPU: each says so, one that fails leaves the others alone, and a dry run runs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stage_classes
import stage_examples
import stage_pytest
import torch
from stage import Setting, Skipped, _outcome
from stage_classes import ACTIVE, THREADS, WARPGROUP, compare, kernels

from precaudit.examples.digits_cnn import load_data

HERE = Path(__file__).parent
STAGES = {path.stem.removeprefix("stage_") for path in HERE.glob("stage_*.py")}


def run(out, *arguments, **environment):
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, **environment}
    return subprocess.run([str(HERE / "run.sh"), *arguments], env=environment, capture_output=True, text=True)


def results(out):
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def limits():
    text = (HERE / "run.sh").read_text()
    return text.split("STAGES:-")[1].split("}")[0]


def test_every_stage_is_run():
    stages = dict(entry.split(":") for entry in limits().split())
    assert set(stages) == STAGES
    assert sum(map(int, stages.values())) <= 600


def test_a_stage_may_use_what_the_others_left(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$LIMIT" >> {tmp_path}/limits\ncase $1 in *slow*) sleep 3;; esac\n')
    python.chmod(0o755)
    run(tmp_path, PYTHON=str(python), STAGES="a:100 slow:1 b:20 c:30")
    first, second, third, last = map(int, (tmp_path / "limits").read_text().split())
    assert (first, second) == pytest.approx((100, 101), abs=1)
    assert (third, last) == pytest.approx((second - 3 + 20, third + 30), abs=2)


def test_the_tests_of_the_stage_run_without_the_plugins_that_the_project_configures(tmp_path):
    test = tmp_path / "test_one.py"
    test.write_text("import pytest\n\n\n@pytest.mark.gpu\ndef test_one():\n    pass\n")
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*stage_pytest.COMMAND, str(test)], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_no_test_file_needs_at_its_top_what_a_gpu_machine_may_lack():
    """`pytest -m gpu` collects all of them, and one that can't be imported ends it before a test has run."""
    lacking = {"altair", "jsonschema", "orjson", "selenium", "vl_convert"}
    for path in HERE.parent.rglob("test_*.py"):
        top = ast.parse(path.read_text()).body
        imported = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        imported += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        assert not lacking & {name.partition(".")[0] for name in imported}, path


@pytest.mark.slow
def test_a_dry_run_of_everything_and_of_a_stage_that_dies(tmp_path):
    limits = " ".join(f"{name}:200" for name in sorted(STAGES))  # a GPU machine's are too short for a busy one
    done = run(tmp_path, "--dry-run", STAGES=f"missing:30 {limits}")
    found = results(tmp_path)
    assert done.returncode == 1
    assert found.pop("missing")["status"] == "failed"
    assert {name: found[name]["status"] for name in STAGES} == dict.fromkeys(STAGES, "ok"), found
    assert found["histograms"]["dry_run"] is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_a_stage_says_so_and_measures_nothing(tmp_path):
    done = run(tmp_path, STAGES="histograms:200")
    assert done.returncode == 0
    (found,) = results(tmp_path).values()
    assert (found["status"], found["reason"]) == ("skipped", "no CUDA device")
    assert "results" not in found


def test_outcomes(tmp_path):
    setting = Setting("cpu", True, tmp_path)

    def skip(_):
        raise Skipped("no ncu")

    assert _outcome(skip, setting) == {"status": "skipped", "reason": "no ncu"}
    assert _outcome(lambda _: 1 / 0, setting)["status"] == "failed"
    assert _outcome(lambda _: {"a": 1, "failures": ["b broke"]}, setting) == {
        "status": "failed",
        "reason": "b broke",
        "results": {"a": 1},
    }


NCU = [
    "==PROF== Connected to process 1",
    f'"ID","Kernel Name","{THREADS}","{ACTIVE}","{WARPGROUP}"',
    '"","","","cycle","inst"',
    '"0","nvjet_tst_128x128_64x4_1x2_h_bz_coopA_NNT","64","1,234","64"',
    '"1","void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x64>(Params)","32","990","0"',
    '"2","void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(Params)","32","700","n/a"',
    '"3","void cutlass::Kernel2<cutlass_80_tensorop_d884gemm_32x32_16x5_nn_align1>(T1::Params)","32","500","0"',
    '"4","void at::vectorized_elementwise_kernel<4, at::exp_kernel_cuda>(int)","320","60","0"',
    '"5","void somebody::kernel(int)","32","0","0"',
]


def test_names_are_held_against_counters():
    assert [(k.cycles, k.warpgroup) for k in kernels(NCU)] == [(617, 32), (990, 0), (700, 0), (500, 0), (6, 0), (0, 0)]
    found = compare(NCU, (9, 0))
    assert found["compared"] == 6
    assert found["enough"] is False
    assert found["table"]["native by name, native by counter"] == 1
    assert found["table"]["legacy by name, legacy by counter"] == 1
    assert found["table"]["none by name, none by counter"] == 1
    ((wrong, why),) = found["disagreements"].items()
    assert "simt" in wrong
    assert why == "none, not legacy"
    assert found["unknown"] == {"void somebody::kernel(int)": "none"}
    with pytest.raises(RuntimeError):
        compare(NCU[:3], (9, 0))


def test_an_operation_that_is_refused_ends_its_family_alone(monkeypatch, capsys):
    def refusing(device, size):
        yield torch.ones(1)
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nmore")

    whole = stage_classes.workload.run("cpu", 32)
    assert stage_classes.workload.REFUSED not in capsys.readouterr().out
    monkeypatch.setattr(stage_classes.workload, "eight_bits", refusing)
    assert stage_classes.workload.run("cpu", 32) == whole + 1
    assert capsys.readouterr().out == "refused: refusing: CUBLAS_STATUS_NOT_SUPPORTED\n"


@pytest.mark.parametrize(("says", "status"), [(None, "ok"), ("out of memory", "failed")])
def test_an_example_without_its_data_is_skipped(monkeypatch, tmp_path, says, status):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as asks:
        load_data()
    real, command = subprocess.Popen, [sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(4)"]
    says = says or str(asks.value)
    monkeypatch.setattr(stage_examples.subprocess, "Popen", lambda _, **options: real([*command, says], **options))
    found = _outcome(stage_examples.measure, Setting("cpu", False, tmp_path))
    assert found["status"] == status
    assert says in str(found["results"]["digits_cnn"])


@pytest.mark.parametrize("ended", [True, False])
def test_a_workload_that_ends_early_is_told(monkeypatch, tmp_path, ended):
    """ncu reports what ran until then, as if that were all."""

    def run_ncu(command, **_):
        (metrics,) = (command[i + 1] for i, word in enumerate(command) if word == "--metrics")
        assert {ACTIVE, WARPGROUP, THREADS} == set(metrics.split(","))
        assert command[0] == "/usr/local/cuda/bin/ncu"  # that of CUDA, where none is on the path
        last = [f"135 {stage_classes.workload.FINISHED}"] if ended else []
        return subprocess.CompletedProcess(command, 0, "\n".join([*last, *NCU]), "RuntimeError: no float8 here")

    monkeypatch.setattr(stage_classes.shutil, "which", lambda name, path=None: path and f"{path}/{name}")
    monkeypatch.setattr(stage_classes.subprocess, "run", run_ncu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = _outcome(stage_classes.measure, Setting("cpu", False, tmp_path))
    assert found["status"] == ("ok" if ended else "failed")
    assert found["results"]["compared"] == 6
    assert ended or found["reason"] == "the workload ended early: RuntimeError: no float8 here"


def test_an_example_that_takes_too_long_is_told_and_the_others_keep_their_results(monkeypatch, tmp_path):
    real, report = (
        subprocess.Popen,
        {"verification": {"verdict": "pass", "execution": "native"}, "plan": {"default": ""}},
    )
    report |= {"environment": {}, "performance": {}}

    def popen(command, **options):
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report))
        return real([sys.executable, "-c", "import time; time.sleep(60)" if folder.name == "slow" else ""], **options)

    monkeypatch.setattr(stage_examples.subprocess, "Popen", popen)
    monkeypatch.setattr(stage_examples, "EXAMPLES", [Path("quick.py"), Path("slow.py")])
    monkeypatch.setattr(stage_examples, "SECONDS", 3.0)
    found = _outcome(stage_examples.measure, Setting("cpu", False, tmp_path))
    assert (found["status"], found["results"]["quick"]["verdict"]) == ("failed", "pass")
    assert found["reason"].startswith("slow: not done within")
