"""What callbacks share: reports now and then, whole at the end, and a training that nothing here can end."""

import logging

import pytest
import torch
from torch import nn

from precaudit import PrecauditError, audit, load_plan, load_report
from precaudit.integrations.recording import Recording
from precaudit.reporting import FOLDER_FILES


class Logarithm(nn.Linear):
    """The logarithm of zero is -inf, and its gradient nan."""

    def forward(self, x):
        return (super().forward(x) * 0).log()


def train(recording, model, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recording.start(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        recording.stepped()


@pytest.fixture
def recordings():
    """`recordings(folder, every=..., save_every=...)`, none of which outlives its test."""
    made = []

    def record(*arguments, **options):
        made.append(Recording(*arguments, **options))
        return made[-1]

    yield record
    for recording in made:
        recording.stop()


def test_audit_failure_is_logged_and_training_goes_on(monkeypatch, recordings, tmp_path, caplog):
    def fail(*arguments):
        raise KeyError("missing")

    model = nn.Linear(4, 4)
    for method in ("__enter__", "__exit__"):
        with monkeypatch.context() as patch:
            recording = recordings(tmp_path / "out", every=1, save_every=10)
            patch.setattr(audit, method, fail)
            train(recording, model, 2)
            running = recording._audit
            recording.stop()
        if running is not None:
            running.__exit__(None, None, None)
    assert caplog.text.count("KeyError: 'missing'") == 2


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_reports_are_written_during_and_after_training(recordings, tmp_path):
    recording, model = recordings(tmp_path / "out", every=2, save_every=3), nn.Linear(4, 4)
    train(recording, model, 2)
    assert not names(tmp_path / "out")
    recording.stop()
    assert names(tmp_path / "out") >= set(FOLDER_FILES)
    assert f'load_plan("{tmp_path}/out/plan.json")' in (tmp_path / "out/report.md").read_text()
    train(recording, model, 7)
    assert load_report(tmp_path / "out/report.json").job["steps"] == 6
    assert load_plan(tmp_path / "out/plan.json").modules
    recording.stop()
    assert load_report(tmp_path / "out/report.json").job["steps"] == 7
    assert not model._forward_hooks


def test_a_second_training_begins_anew_and_the_first_one_is_kept_until_then(recordings, tmp_path):
    recording = recordings(tmp_path, every=1, save_every=100)
    train(recording, nn.Linear(4, 4), 3)
    train(recording, nn.Linear(4, 4), 2)  # a trainer that tells nobody that its first training raised
    assert load_report(tmp_path / "report.json").job["steps"] == 3
    recording.fail()
    assert load_report(tmp_path / "report.json").job["steps"] == 2


def test_a_finding_is_logged_once(recordings, tmp_path, caplog):
    recording = recordings(tmp_path, every=1, save_every=1)
    with caplog.at_level(logging.WARNING, "precaudit"):
        train(recording, Logarithm(4, 4), 3)
        recording.stop()
    told = [record.getMessage() for record in caplog.records]
    assert ["PA308" in message for message in told] == [True]


def test_unwritable_folder_does_not_stop_training(recordings, tmp_path, caplog):
    (tmp_path / "file").touch()
    train(recordings(tmp_path / "file/out", every=1, save_every=1), nn.Linear(4, 4), 2)
    assert "cannot write" in caplog.text


def test_report_failure_does_not_stop_training(recordings, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("precaudit.profiling.own_loop.build_plan", None)
    train(recordings(tmp_path, every=1, save_every=1), nn.Linear(4, 4), 2)
    assert "no report was written at step 1; the training goes on" in caplog.text


@pytest.mark.parametrize("wrong", [{"every": 0}, {"save_every": 0}])
def test_invalid_counts_are_refused(wrong, recordings, tmp_path):
    with pytest.raises(PrecauditError):
        recordings(tmp_path, **({"every": 1, "save_every": 1} | wrong))
