"""What is read off a script before it runs."""

from pathlib import Path

import pytest

from precaudit.running.job import Job
from precaudit.running.sources import CALLABLE, classify, inert_imports, is_binary, lacking

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


def test_imports_of_slow_libraries_wherever_they_stand(tmp_path: Path):
    assert inert_imports(written(tmp_path, SCRIPT)) == ("pandas", "scipy.stats", "sklearn.datasets")


def test_a_file_beside_the_script_is_meant_before_a_library(tmp_path: Path):
    (tmp_path / "pandas.py").touch()
    (tmp_path / "scipy").mkdir()
    assert inert_imports(written(tmp_path, SCRIPT)) == ("sklearn.datasets",)


def test_what_is_no_python_imports_nothing(tmp_path: Path):
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


def test_weights_are_no_script(tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04\0\0")
    assert is_binary(tmp_path / "w.pt")
    written(tmp_path, "print('ünï')")
    assert not is_binary(tmp_path / "train.py")
