"""A script runs as Python itself would run it."""

from precaudit.running.job import Job
from precaudit.running.script import run_job

SCRIPT = """
from dataclasses import dataclass, fields

@dataclass
class Options:
    lr: float = 0.1

assert [field.type for field in fields(Options)] == [float]
print("ran")
"""


def test_its_annotations_are_what_they_name(tmp_path, capfd):
    """Parsers of dataclasses read them; they'd be strings by a future import that isn't the script's."""
    (tmp_path / "train.py").write_text(SCRIPT)
    run_job(Job("script", "train.py", (), str(tmp_path), 1))
    assert capfd.readouterr().out == "ran\n"
