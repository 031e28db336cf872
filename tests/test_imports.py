"""Dependencies point one way, and what needs no torch starts without it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from precaudit.model import Layer, Plan, Report
from precaudit.reporting.serialize import write_json

ROOT = Path(__file__).parent.parent / "precaudit"

ALLOWED = {
    "errors": set(),
    "cache": set(),
    "formats": {"errors"},
    "model": {"formats"},
    "catalogue": set(),
    "finding": {"model"},
    "words": set(),
    "histograms": {"formats", "model"},
    "instrument": set(),
    "execution": {"errors", "formats", "instrument", "model", "words"},
    "tracing": {"execution", "formats", "histograms", "instrument", "model"},
    "ownprecision": {"execution", "histograms", "instrument", "model", "tracing"},
    "planning": {"errors", "formats", "model", "tracing.records"},
    "verification": {"model", "running.job", "words"},
    "running": {"cache", "errors", "execution", "formats", "histograms", "instrument", "model", "tracing"}
    | {"ownprecision"},
    "reporting": {"cache", "catalogue", "errors", "finding", "formats", "model", "words"},
    "comparison": {"catalogue", "errors", "finding", "formats", "model", "reporting", "words"},
    "hardware": {"errors", "formats", "model", "reporting", "words"},
    "tensorcores": {"errors", "execution", "finding", "formats", "hardware", "instrument", "model", "reporting"}
    | {"words"},
    "measuring": {"execution", "hardware", "instrument", "model", "ownprecision", "reporting", "running"}
    | {"tensorcores", "words"},
    "profiling": {"errors", "execution", "finding", "formats", "hardware", "measuring", "model", "ownprecision"}
    | {"planning", "reporting", "running", "tensorcores", "tracing", "verification", "words"},
    "checking": {"comparison", "errors", "execution", "finding", "formats", "hardware", "instrument", "model"}
    | {"planning", "profiling", "reporting", "running", "tensorcores", "tracing", "words"},
}
"""What a package may import when it is loaded; whatever isn't listed here knows everybody and nobody knows it."""

TORCH_FREE = (
    "cache",
    "catalogue",
    "errors",
    "formats",
    "model",
    "planning",
    "verification",
    "words",
    "reporting",
    "comparison",
    "commands",
)
TORCH_FREE_FILES = ("__init__", "__main__", "api", "tracing/records", "running/job")


def package_of(path):
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def loaded(path):
    """Modules that a file imports when it is loaded: not those inside functions, nor for type checkers only."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(*packages):
    return [path for path in sorted(ROOT.rglob("*.py")) if package_of(path) in packages]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_knows_those_below_it_only(package):
    allowed = ALLOWED[package] | {package, "__version__"}
    for path in files(package):
        for name in loaded(path):
            inside = name.removeprefix("precaudit.")
            if inside != name:
                assert any(f"{inside}.".startswith(f"{each}.") for each in allowed), f"{path} imports {name}"


def test_the_rules_themselves_have_no_circle():
    """A package that another one knows never knows that one."""
    remaining = {package: {each.partition(".")[0] for each in allowed} for package, allowed in ALLOWED.items()}
    while remaining:
        free = [package for package, known in remaining.items() if not known & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for package in free:
            del remaining[package]


@pytest.mark.parametrize("path", [*files(*TORCH_FREE), *(ROOT / f"{name}.py" for name in TORCH_FREE_FILES)], ids=str)
def test_files_that_load_no_torch(path):
    assert not [name for name in loaded(path) if name.partition(".")[0] == "torch"]


def test_records_are_free_of_torch_whatever_they_import():
    code = "import sys, precaudit.tracing.records, precaudit.running.job; print('torch' in sys.modules)"
    assert python(code) == "False"


# ---------------------------------------------------------------- processes


def python(code):
    """What a fresh interpreter prints last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.fixture
def inputs(tmp_path):
    kernel = {"ph": "X", "cat": "kernel", "name": "sgemm", "ts": 1, "dur": 5, "pid": 0, "tid": 7, "args": {}}
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [kernel]}))
    layers = (Layer("fc", "Linear", 4, 1, ()),)
    write_json(tmp_path / "report.json", Report(layers=layers, plan=Plan(default="bfloat16")))
    return tmp_path


COMMANDS = {
    "help": ["--help"],
    "profile --help": ["profile", "--help"],
    "profile --fail-on list": ["profile", "--fail-on", "list"],
    "report": ["report", "report.json", "-o", "out.md", "-o", "out.json"],
    "compare": ["compare", "report.json", "report.json", "-o", "out.md"],
    "trace": ["trace", "trace.json", "-o", "out.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_start_without_torch(command, inputs):
    code = f"""
import os, sys
os.chdir({str(inputs)!r})
from precaudit.__main__ import main
try:
    status = main({COMMANDS[command]!r})
except SystemExit as exit_:
    status = exit_.code
print(status, "torch" in sys.modules)
"""
    assert python(code) == "0 False"


def test_the_public_api_loads_without_torch():
    assert (
        python("import sys; from precaudit import Plan, load_report, profile; print('torch' in sys.modules)") == "False"
    )
