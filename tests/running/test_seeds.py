"""Streams of random numbers: equal within a trial, different across trials, however a script seeds itself."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precaudit.running.seeds import controlled_seeds, derived_seed, repeatable_algorithms


def numbers():
    return (
        random.random(),
        float(np.random.rand()),
        float(torch.rand(())),
        [int(i) for i in torch.randperm(50)],
        float(np.random.default_rng().random()),
    )


SCRIPTS = {
    "unseeded": lambda: None,
    "torch": lambda: torch.manual_seed(0),
    "torch.random": lambda: torch.random.manual_seed(0),
    "python": lambda: random.seed(1234),
    "numpy": lambda: np.random.seed(7),
    "seeded by a string": lambda: random.seed("experiment"),
    "seeded anew": lambda: (random.seed(), np.random.seed(), torch.seed()),
    "by keyword": lambda: (random.seed(a=3), np.random.seed(seed=3), torch.manual_seed(seed=3)),
    "everything": lambda: (random.seed(0), np.random.seed(0), torch.manual_seed(0), torch.cuda.manual_seed_all(0)),
}


def trial(script, number):
    with controlled_seeds(number):
        SCRIPTS[script]()
        return numbers()


@pytest.mark.parametrize("script", SCRIPTS)
def test_trials_are_reproducible(script):
    for number in (0, 1, 5):
        assert trial(script, number) == trial(script, number)


@pytest.mark.parametrize("script", SCRIPTS)
def test_trials_differ_in_every_random_stream(script):
    for first, second in zip(trial(script, 0), trial(script, 1), strict=True):
        assert first != second
    assert trial(script, 1) != trial(script, 2)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_first_trial_uses_the_scripts_own_seeds(kind):
    def drawn():
        torch.manual_seed(kind(3))
        np.random.seed(kind(3))
        random.seed(3)
        generator = np.random.default_rng(kind(3))
        return float(torch.rand(())), float(np.random.rand()), random.random(), float(generator.random())

    alone = drawn()
    with controlled_seeds(0):
        assert drawn() == alone


def test_different_seeds_of_a_script_stay_different():
    with controlled_seeds(2):
        torch.manual_seed(0)
        first = torch.rand(3)
        torch.manual_seed(1)
        second = torch.rand(3)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(first, second)


def test_generators_and_sequences_given_to_numpy_are_left_alone():
    sequence = np.random.SeedSequence(5)
    expected = np.random.default_rng(np.random.SeedSequence(5)).random()
    with controlled_seeds(4):
        assert np.random.default_rng(sequence).random() == expected
        generator = np.random.default_rng(1)
        assert np.random.default_rng(generator) is generator


def test_each_generator_without_a_seed_draws_its_own():
    """A data set that makes one for every batch would train on one batch for ever."""

    def drawn(trial):
        with controlled_seeds(trial):
            return [float(np.random.default_rng().random()) for _ in range(20)]

    assert len(set(drawn(0))) == 20
    assert drawn(0) == drawn(0)
    assert not set(drawn(0)) & set(drawn(1))


class Drawn(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.random.default_rng().random()


def test_data_loader_workers_draw_different_numbers():
    def drawn():
        with controlled_seeds(0):
            return torch.cat(list(torch.utils.data.DataLoader(Drawn(), num_workers=2))).tolist()

    assert len(set(drawn())) == 4
    assert drawn() == drawn()


def test_patched_functions_return_the_original_values():
    with controlled_seeds(1):
        assert isinstance(torch.manual_seed(0), torch.Generator)
        assert random.seed(0) is None


def test_seeding_functions_are_restored():
    before = torch.manual_seed, torch.random.manual_seed, torch.seed, np.random.seed, np.random.default_rng, random.seed
    with pytest.raises(ZeroDivisionError), controlled_seeds(1):
        raise ZeroDivisionError
    after = torch.manual_seed, torch.random.manual_seed, torch.seed, np.random.seed, np.random.default_rng, random.seed
    assert before == after


@given(st.one_of(st.integers(), st.text(), st.floats(), st.none()), st.integers(0, 100))
def test_derived_seeds_suit_every_generator(seed, number):
    derived = derived_seed(seed, number)
    assert derived == derived_seed(seed, number)
    if number or not isinstance(seed, int):
        assert 0 <= derived < 2**32


@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(51, 100))
def test_derived_seeds_differ_between_trials(seed, first, second):
    assert derived_seed(seed, first) != derived_seed(seed, second)


@pytest.mark.parametrize("gpus", [0, 1])
def test_algorithms_are_deterministic_where_there_is_a_gpu_and_are_restored(monkeypatch, gpus):
    def settings():
        chosen = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        filled = torch.utils.deterministic.fill_uninitialized_memory
        return *chosen, filled, torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    before = settings()
    with repeatable_algorithms():
        torch.backends.cudnn.benchmark = bool(gpus)
        assert settings() == ((True, True, False, False, ":4096:8") if gpus else before)
    assert settings() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_stays_deterministic_if_the_script_sets_cudnn():
    def gradient():
        torch.manual_seed(0)
        images = torch.randn(8, 16, 32, 32, device="cuda")
        weight = torch.randn(16, 16, 3, 3, device="cuda", requires_grad=True)
        table = torch.zeros(5, 16, device="cuda", requires_grad=True)
        rows = table[torch.randint(5, (8,), device="cuda")]
        (torch.nn.functional.conv2d(images, weight).mean((2, 3)) + rows).square().sum().backward()
        return torch.cat([weight.grad.flatten(), table.grad.flatten()])

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with repeatable_algorithms():
        torch.backends.cudnn.benchmark = True
        assert not torch.backends.cudnn.benchmark
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(5))
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
