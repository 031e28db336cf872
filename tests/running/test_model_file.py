"""The loops of model files, and mistakes in the functions that they are made of."""

import pytest
import torch
from torch import nn

from precaudit.errors import ExitCode, PrecauditError
from precaudit.running.job import Job, RunSpec
from precaudit.running.model_file import infer, train
from precaudit.running.worker import run

BATCH = torch.ones(4, 2)


def build_model():
    return nn.Linear(2, 1)


def loss(model, batch):
    return model(batch).square().mean()


def functions(**others):
    return {"build_model": build_model, "batches": lambda: [BATCH] * 3, "loss": loss} | others


def steps_of(functions, wanted=8):
    return run(RunSpec(Job("model_file", "model.py", (), ".", wanted), "reference"), lambda: train(functions, "cpu"))


MISTAKES = [
    ({"loss": lambda model, batch: (loss(model, batch), 1)}, r"loss\(model, batch\) must return a scalar.* a tuple"),
    ({"loss": lambda model, batch: 0.5}, "a float"),
    ({"loss": lambda model, batch: None}, "returned None"),
    ({"loss": lambda model, batch: model(batch)}, r"one of shape \(4, 1\)"),
    ({"loss": lambda model, batch: loss(model, batch).detach()}, "one without a gradient"),
    ({"loss": lambda model: None}, r"called as loss\(model, batch\), but it is loss\(model\): too many"),
    ({"loss": None}, r"loss\(model, batch\) must be a function, but it is None"),
    ({"build_model": lambda: None}, r"build_model\(\) must return a torch.nn.Module, but it returned None"),
    ({"build_model": nn.Linear(8, 1)}, "it is a model already: pass a function that returns a new one"),
    ({"build_model": lambda width: None}, "missing a required argument: 'width'"),
    ({"build_optimizer": lambda model: None}, "must return one optimizer.* returned None"),
    ({"build_optimizer": lambda model: [torch.optim.SGD(model.parameters())]}, "returned a list"),
    ({"batches": lambda: None}, r"batches\(\) must return an iterable of batches, but it returned None"),
]


@pytest.mark.parametrize(("wrong", "sentence"), MISTAKES)
def test_functions_with_wrong_results_are_refused(wrong, sentence):
    with pytest.raises(PrecauditError, match=sentence) as caught:
        steps_of(functions(**wrong))
    assert caught.value.exit_code == ExitCode.SCRIPT_FAILED


def test_late_error_keeps_the_earlier_steps():
    scalars = iter([True, True, False])
    result = steps_of(functions(loss=lambda model, batch: loss(model, batch) if next(scalars) else model(batch)))
    assert (result.status, result.steps, len(result.losses)) == ("failed", 2, 2)
    assert result.error.traceback.startswith("loss(model, batch) must return a scalar tensor")


def test_one_shot_batches_end_the_run():
    once = iter([BATCH] * 5)
    result = steps_of(functions(batches=lambda: once))
    assert (result.status, result.steps, len(result.losses)) == ("ended", 5, 5)


def test_batches_are_repeated_in_every_epoch():
    assert steps_of(functions()).steps == 8
    assert steps_of(functions(batches=[BATCH])).steps == 8


def test_no_batch_at_all():
    with pytest.raises(PrecauditError, match="no batch") as caught:
        steps_of(functions(batches=list))
    assert caught.value.exit_code == ExitCode.NOTHING_TO_MEASURE


def test_without_training_there_is_one_epoch_at_most():
    seen = []
    infer(functions(loss=lambda model, batch: seen.append(model.training)), "cpu", 8)
    assert seen == [False] * 3
