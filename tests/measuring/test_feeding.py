"""How a script is fed, from the loaders it draws from."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.measuring.feeding import Feeding


def fed(loader, steps_per_batch=1, batches_per_step=1, backwards=1):
    feeding = Feeding()
    with feeding.loaders.installed():
        for number, _ in enumerate(loader, 1):
            if number % batches_per_step == 0:
                for _ in range(steps_per_batch):
                    feeding.count(backwards)
    return feeding.feed()


def loader(length=40, batch=8):
    return DataLoader(TensorDataset(torch.zeros(length, 3)), batch_size=batch)


@pytest.mark.parametrize(
    ("steps_per_batch", "batches_per_step", "samples", "epoch"), [(1, 1, 8, 5), (2, 1, 4, 10), (1, 5, 40, 1)]
)
def test_an_epoch_in_steps(steps_per_batch, batches_per_step, samples, epoch):
    found = fed(loader(), steps_per_batch, batches_per_step)
    assert (found.samples_per_step, found.steps_per_epoch) == (samples, epoch)


def test_the_loader_that_feeds_most_steps_counts():
    feeding, train, test = Feeding(), loader(80), loader(8)
    with feeding.loaders.installed():
        for _ in train:
            feeding.count(1)
        list(test)
        for _ in train:
            feeding.count(1)
    assert feeding.feed().steps_per_epoch == pytest.approx(10)


class Endless(Sampler):
    def __iter__(self):
        return iter(range(12))

    def __len__(self):
        raise NotImplementedError("endless")


def test_a_sampler_that_has_no_length_has_no_epoch():
    found = fed(DataLoader(torch.zeros(12, 3), batch_size=4, sampler=Endless()))
    assert (found.samples_per_step, found.steps_per_epoch) == (4, None)


def test_a_stream_has_no_epoch():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(12, 3))

    found = fed(DataLoader(Stream(), batch_size=4))
    assert (found.samples_per_step, found.steps_per_epoch) == (4, None)


def test_without_a_loader_the_first_models_first_input_tells():
    feeding, scopes = Feeding(), ModuleScopes(ModuleNames())
    scopes.listeners.append(feeding)
    with scopes.installed():
        feeding.step_begins()
        nn.Linear(3, 2)(torch.zeros(6, 3))
        nn.Linear(3, 2)(torch.zeros(9, 3))
    feeding.count(backwards=4)
    found = feeding.feed()
    assert (found.samples_per_step, found.steps_per_epoch) == (24, None)
    assert len(found.waits) == 1


def test_loaders_are_restored():
    before = DataLoader.__iter__
    fed(loader())
    assert DataLoader.__iter__ is before
