"""Runs that don't start alike, because the script goes on from what an earlier run left."""

import copy

import pytest
import torch
from torch import nn

import precaudit


def batches():
    while True:
        x = torch.randn(32, 8)
        yield x, x.sum(1, keepdim=True)


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def profiled(build, batches=batches, loss=loss):
    settings = {"steps": 16, "quick": True, "formats": ["bfloat16"]}
    report = precaudit.profile(
        build, batches, loss, build_optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.05), **settings
    )
    return report, [note for note in report.job["notes"] if "instead of" in note]


def test_runs_that_resume_are_noted_and_blame_no_format():
    kept = [build_model()]

    def resuming():
        kept.append(copy.deepcopy(kept[-1]))
        return kept[-1]

    report, notes = profiled(resuming)
    assert len(notes) == 1
    assert "resume" in notes[0]
    assert report.job["gradient_errors"] == []
    assert "PA201" not in {finding.rule for finding in report.findings}


def test_runs_that_start_alike_are_compared():
    report, notes = profiled(build_model)
    assert notes == []
    assert report.job["gradient_errors"]


class Cancelling(nn.Module):
    """A large offset comes and goes: a half format loses what it is added to."""

    def __init__(self):
        super().__init__()
        self.inner = build_model()

    def forward(self, x):
        return self.inner(x) + 1000.0 - 1000.0


def test_a_first_loss_changed_by_rounding_is_the_same_start():
    report, notes = profiled(Cancelling)
    assert notes == []
    assert report.job["gradient_errors"]


def test_the_audit_is_repeated_where_the_first_run_prepared_files():
    prepared = []

    def build():
        if not prepared:
            prepared.append(torch.randn(64, 8))
        return build_model()

    report, notes = profiled(build)
    assert notes == []
    assert report.job["gradient_errors"]


@pytest.mark.parametrize(
    ("since", "compared"), [(0, []), (6, ["bfloat16@init"]), (16, ["bfloat16@init", "bfloat16@late"])]
)
def test_gradients_are_compared_until_a_probed_step_changed_the_next_batches(since, compared):
    """From step `since` on, the model's last answer decides what is drawn next, as in prioritized replay."""
    answers = []

    def build():
        answers.clear()
        return build_model()

    def drawn():
        for step, batch in enumerate(batches()):
            if step > since:
                torch.manual_seed(answers[-1].view(torch.int32).sum().item())
            yield batch

    def remembered(model, batch):
        answers.append(model(batch[0]).detach().float())
        return loss(model, batch)

    report = profiled(build, drawn, remembered)[0]
    assert [each["probe"] for each in report.job["gradient_errors"]] == compared
    assert any("another loss" in note for note in report.job["notes"]) is (since < 16)
    assert "PA201" not in {finding.rule for finding in report.findings}
