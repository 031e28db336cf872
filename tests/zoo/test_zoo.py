"""The zoo's own consistency, and that its judge tells a fault from its repair."""

import ast
import json
from pathlib import Path

import prove
import pytest
import torch
from cuda_autocast import FLOAT32, LOWER, PROMOTE, emulated
from judging import judge, needless, passed
from summary import summary
from zoo_files import ZOO, every, file_of, repaired

MANIFEST = json.loads((ZOO / "manifest.json").read_text())


def test_manifest_lists_every_script_once():
    assert sorted(entry["script"] for entry in MANIFEST) == every()
    assert all(entry["name"] == Path(entry["script"]).stem for entry in MANIFEST)


def test_every_fault_has_a_mechanism_and_a_repaired_twin():
    healthy = {entry["name"] for entry in MANIFEST if entry["kind"] == "healthy"}
    faults = [entry for entry in MANIFEST if entry["kind"] == "fault"]
    assert len(faults) >= 20
    for entry in faults:
        assert entry["repaired"] in healthy
        assert entry["mechanism"]
        assert entry["blamed"]["keywords"]
        assert entry["expected"]["script_at_fault"] == (entry["cause"] == "script")


@pytest.mark.parametrize("script", every(), ids=lambda script: Path(script).stem)
def test_scripts_are_plain_torch(script):
    source = file_of(script).read_text()
    assert "precaudit" not in source
    assert "manual_seed" in source
    assert 30 <= len(source.splitlines()) <= 70
    imported = {
        n.names[0].name if isinstance(n, ast.Import) else n.module
        for n in ast.walk(ast.parse(source))
        if isinstance(n, (ast.Import, ast.ImportFrom))
    }
    assert {name.split(".")[0] for name in imported} <= {"argparse", "copy", "math", "pathlib", "torch"}


def test_a_repair_is_of_the_fault_as_it_is():
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@\n x\n-y\n+z\n z\n@@ -5 +5,2 @@\n v\n+u\n"
    assert repaired("x\ny\nz\nw\nv\n", diff) == "x\nz\nz\nw\nv\nu\n"
    with pytest.raises(ValueError, match="line 2 is not 'y"):
        repaired("x\nother\nz\nw\nv\n", diff)


def test_the_emulations_lists_are_torchs():
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    if not header.exists():
        pytest.skip("this torch ships no headers")
    text = header.read_text()
    lower = text.split("AT_FORALL_LOWER_PRECISION_FP(_)")[-1].split("#define")[0]
    float32 = text.split("#define AT_FORALL_FP32(_)")[-1].split("#define AT_FORALL_DIFFERENT")[0]
    promote = text.split("#define AT_FORALL_PROMOTE(_)")[-1].split("\n\n")[0]
    assert {"linear", "matmul", "bmm", "conv2d", "scaled_dot_product_attention"} <= LOWER
    by_python = {"lstm", "gru", "rnn_tanh", "rnn_relu", "rmatmul"}
    assert all(f"_({name}" in lower for name in LOWER - by_python)
    composed = {"rpow", "norm", "interpolate", "linalg_norm", "vector_norm", "square", "cross_entropy", "normalize"}
    assert all(f"_({name}" in float32 for name in FLOAT32 - composed)
    assert all(f"_({name}" in promote for name in PROMOTE - {"grid_sample"})


def test_emulation_rounds_forward_and_backward_to_half():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(7, 5), torch.randn(3, 7, requires_grad=True)
    with emulated("float16"):
        out = layer(x)
    expected = (x.half().float() @ layer.weight.half().float().T + layer.bias.half().float()).half().float()
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.backward(gradient := torch.full_like(out, 1e-3))
    expected = (gradient.half().float() @ layer.weight.half().float()).half().float()
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)
    assert layer.weight.grad.dtype == torch.float32


def test_judge_tells_the_fault_from_its_repair():
    def row(script):
        reference, low = (prove.run(script, 25, execution, 0, {}) for execution in ("float32", "float16"))
        return prove.Row({}, "float16", 0, reference, low, sound=True)

    assert row("faults/rmsnorm_by_hand.py").signs() == ["loss worse"]
    assert row("repaired/rmsnorm_by_hand_fixed.py").signs() == []


def report(verdict="pass", because=None, findings=(), window=None):
    return {
        "findings": list(findings),
        "plan": {
            "default": "float16",
            "because": because or {},
            "loss_scale": {"mode": "dynamic" if window else "none", "window": window},
        },
        "verification": {"verdict": verdict, "reason": "", "repairs": [], "evaluations": 700, "execution": "emulated"},
    }


FAULT = {
    "kind": "fault",
    "blamed": {"fqns": ["norm", "blocks.0"], "consumers": ["head"], "keywords": ["overflow"]},
}


def test_exceptions_beyond_the_culprits_and_their_consumers_are_needless():
    because = {"norm": "a", "blocks.0.linear": "b", "blocks.0:mul": "c", "head": "d", "blocks.1": "e", "blocks.01": "f"}
    assert needless(FAULT, report(because=because)) == ["blocks.1", "blocks.01"]
    beside = {"x": "float8 is for linear layers with sizes in multiples of 16; this runs in bfloat16 beside them"}
    assert needless(FAULT, report(because=beside)) == []


@pytest.mark.parametrize(
    ("made", "caught", "blamed", "right"),
    [
        (report(), False, False, False),
        (report("fail"), True, False, False),
        (report(because={"other": "its error is large"}), True, False, False),
        (report(because={"other": "mul would OVERFLOW"}), True, True, True),
        (report(because={"norm:mul": "too large"}), True, True, True),
        (report("inconclusive", because={"norm": "too large"}), True, True, False),
        (report(findings=[{"severity": "note", "fqn": "norm", "message": "overflow"}]), False, False, False),
        (report(findings=[{"severity": "warning", "fqn": "norm", "message": ""}]), True, True, True),
    ],
)
def test_a_fault_is_caught_blamed_and_verified(made, caught, blamed, right):
    result = judge(FAULT, made, 0)
    assert (result["caught"], result["blamed"], passed(FAULT, result)) == (caught, blamed, right)


def test_a_healthy_workload_has_to_be_verified_and_a_crash_is_a_miss():
    healthy = {"kind": "healthy", "blamed": {"fqns": [], "keywords": []}}
    assert passed(healthy, judge(healthy, report(), 0))
    assert not passed(healthy, judge(healthy, report("inconclusive"), 1))
    error, note = ({"severity": severity, "fqn": None, "message": ""} for severity in ("error", "note"))
    assert passed(healthy, judge(healthy, report(findings=[note]), 0))
    assert not passed(healthy, judge(healthy, report(findings=[error]), 0))
    assert not passed(healthy, judge(healthy, None, 4))
    assert judge(healthy, None, 4)["verdict"] == "exit 4"


def test_the_page_tells_misses_and_where_the_default_scaler_is_better():
    def result(name, ours, default, **fields):
        facts = {"name": name, "kind": "fault", "formats": ["float16"], "seconds": 60.0, "right": True}
        scale = {
            "window": [0, 12],
            "init_scale": 4096.0,
            "predicted_skips": 0,
            "observed_skips": [0, 0],
            "recommended": {"skipped": ours[0], "final_scale": 4096.0, "lost_energy": ours[1]},
            "default": {"skipped": default[0], "final_scale": 4096.0, "lost_energy": default[1]},
        }
        return (
            facts
            | judge(FAULT, report(because={"zzz": "x"}), 0)
            | {"execution": "emulated", "loss_scale": scale}
            | fields
        )

    page = summary(
        [
            result("better", (0, 1e-6), (4, 1e-5)),
            result("worse", (0, 1e-5), (0, 1e-6), right=False),
        ],
        scripts=3,
    )
    assert "Cut off after 2 of 3 scripts." in page
    assert "Misses: worse." in page
    assert "better (zzz); worse (zzz)" in page
    assert "Not better in both than the default: worse." in page
    assert "differ by at most one step in 2 of 2" in page
    assert "keeps headroom, within the budget of 1e-4" in page
