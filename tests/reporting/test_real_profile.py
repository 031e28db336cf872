"""What a real profile writes keeps the schemas that ship with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from precaudit.reporting import FORMATS, render
from precaudit.reporting.serialize import load_plan, load_report

jsonschema = pytest.importorskip("jsonschema")

SCRIPT = """
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(20):
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "precaudit", "profile", "--quick", "--steps", "6", "--out", "out", "train.py"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    return folder / "out"


def validate(path, name):
    schema = json.loads((files("precaudit") / "schemas" / f"{name}.schema.json").read_text())
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema)
    return document


def test_report_and_plan_keep_their_schemas(folder):
    report = validate(folder / "report.json", "report")
    assert validate(folder / "plan.json", "plan") == report["plan"]
    assert load_plan(folder / "plan.json") == load_report(folder / "report.json").plan


@pytest.mark.parametrize("format", sorted({*FORMATS} - {"html", "svg"}))
def test_every_renderer_takes_it(folder, format):
    assert render(load_report(folder / "report.json"), format)


def test_no_time_is_negative(folder):
    performance = json.loads((folder / "report.json").read_text())["performance"]
    assert all(value >= 0 for value in performance.values() if isinstance(value, int | float))
