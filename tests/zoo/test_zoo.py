"""The zoo's own consistency, and that its judge tells a fault from its repair."""

import ast
import json
from pathlib import Path

import prove
import pytest
import torch
from cuda_autocast import FLOAT32, LOWER, PROMOTE, emulated

ZOO = Path(__file__).parent
MANIFEST = json.loads((ZOO / "manifest.json").read_text())
SCRIPTS = [*sorted((ZOO / "faults").glob("*.py")), *sorted((ZOO / "healthy").glob("*.py"))]


def test_manifest_lists_every_script_once():
    assert sorted(entry["script"] for entry in MANIFEST) == sorted(f"{p.parent.name}/{p.name}" for p in SCRIPTS)
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_plain_torch(script):
    source = script.read_text()
    assert "precaudit" not in source
    assert "manual_seed" in source
    assert 30 <= len(source.splitlines()) <= 70
    imported = {
        n.names[0].name if isinstance(n, ast.Import) else n.module
        for n in ast.walk(ast.parse(source))
        if isinstance(n, (ast.Import, ast.ImportFrom))
    }
    assert {name.split(".")[0] for name in imported} <= {"argparse", "copy", "math", "pathlib", "torch"}


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
    composed = {"rpow", "norm", "interpolate", "linalg_norm", "vector_norm", "cross_entropy", "normalize"}
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
    assert row("healthy/rmsnorm_by_hand_fixed.py").signs() == []
