"""What is read off a script before it runs."""

import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path

import pytest

from precaudit.running.job import Job
from precaudit.running.sources import CALLABLE, classify, inert_imports, is_binary, is_bundle, lacking

SCRIPT = """
import os, pandas as pd
import scipy.stats
from . import sklearn
from torch import nn

def late():
    from sklearn.datasets import load_digits
    import pandas
"""
MODEL_FILES = {
    "functions": "def build_model(): ...\ndef batches(): ...\ndef loss(model, batch): ...",
    "values": "build_model = lambda: None\nbatches: list = [1]\nloss = print",
    "imports": "from models import build_model, make as batches\nimport loss",
}


def written(folder: Path, text: str) -> Job:
    (folder / "train.py").write_text(text)
    return Job("script", "train.py", (), str(folder), 1)


def test_slow_imports_are_found_anywhere(tmp_path: Path):
    assert inert_imports(written(tmp_path, SCRIPT)) == ("pandas", "scipy.stats", "sklearn.datasets")


def test_local_file_has_precedence_over_a_library(tmp_path: Path):
    (tmp_path / "pandas.py").touch()
    (tmp_path / "scipy").mkdir()
    assert inert_imports(written(tmp_path, SCRIPT)) == ("sklearn.datasets",)


def test_files_that_are_not_python_import_nothing(tmp_path: Path):
    assert inert_imports(written(tmp_path, "import pandas\nmodel = (")) == ()


def test_a_module_or_a_file_that_is_not_there_imports_nothing(tmp_path: Path):
    assert inert_imports(Job("module", "package.train", (), str(tmp_path), 1)) == ()
    assert inert_imports(Job("script", "missing.py", (), str(tmp_path), 1)) == ()


@pytest.mark.parametrize("text", MODEL_FILES.values(), ids=MODEL_FILES)
def test_a_model_file_may_define_assign_or_import_its_functions(text: str, tmp_path: Path):
    path = tmp_path / "file.py"
    path.write_text(text)
    assert classify(path) == "model_file"
    assert lacking(path) is None
    path.write_text(text.replace("loss", "los"))
    assert classify(path) == "script"
    assert lacking(path) == "loss"
    assert lacking(path, CALLABLE) is None
    path.write_text(f"{text}\nx.backward()")
    assert classify(path) == "script"


def test_weight_files_are_not_scripts(tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04\0\0")
    assert is_binary(tmp_path / "w.pt")
    written(tmp_path, "print('ünï')")
    assert not is_binary(tmp_path / "train.py")


SEEN = """
import os, sys
import beside
print(sys.argv, sys.path[0] == os.path.abspath(sys.argv[0]), __name__ == "__main__", sys.modules["__main__"].__file__)
"""


def test_a_folder_or_zip_file_with_a_main_runs_as_python_runs_it(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    assert not is_bundle(folder)
    (folder / "__main__.py").write_text(SEEN)
    (folder / "beside.py").touch()
    zipapp.create_archive(folder, tmp_path / "app.pyz")
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as weights:
        weights.writestr("data.pkl", "")
    assert not is_bundle(tmp_path / "weights.pt")
    run = "import sys; from precaudit.running.script import *; run_job(Job('script', sys.argv[1], ('-x',), '.', 1))"
    for name in ("app", "app.pyz"):
        assert is_bundle(tmp_path / name)
        ways = ([sys.executable, name, "-x"], [sys.executable, "-c", run, name])
        said = [subprocess.run(way, cwd=tmp_path, check=True, capture_output=True, text=True).stdout for way in ways]
        assert said[0] == said[1] != ""
