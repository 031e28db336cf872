"""Probes: of large models gradients of fewer steps are kept, and vectors are added up by samples; what a forward pass
leaves in buffers is put back."""

import math
import os
from itertools import combinations

import pytest
import torch
from torch import nn

from precaudit.model import Plan
from precaudit.planning.budget import gradient_error
from precaudit.running import probes
from precaudit.running.job import Job, RunSpec
from precaudit.running.probes import ENOUGH_BYTES, SAMPLE, _difference, _Sums, affordable
from precaudit.running.worker import run

STEPS = frozenset([*range(16), *range(49, 66)])


def test_small_model_keeps_the_gradients_of_all_steps():
    assert affordable(STEPS, 1_000_000, 10**12, 5) == STEPS
    assert affordable(frozenset(), 10**12, 0, 5) == frozenset()


@pytest.mark.parametrize(
    ("size", "free", "each"),
    [(ENOUGH_BYTES / 20, 10**12, 10), (10**9, 24 * 10**9, 6), (10**12, 10**12, 5), (10**9, 0, 5)],
)
def test_large_model_keeps_the_first_gradient_of_each_interval(size, free, each):
    kept = affordable(STEPS, int(size), free, 5)
    assert kept == frozenset([*range(each), *range(49, 49 + each)])


@pytest.mark.parametrize("shape", [(4096, 384), (3, 5, 7), (SAMPLE + 1,), (1,), (), (8, 0), (0, 8)])
def test_a_sample_of_vectors_estimates_the_energy_of_their_mean(shape):
    torch.manual_seed(0)
    exact = [torch.randn(shape) * 3 + 1 for _ in range(4)]
    low = [gradient + 0.1 + 0.01 * torch.randn(shape) for gradient in exact]
    sums = _Sums()
    for gradient, close in zip(exact, low, strict=True):
        sums.add(close, gradient, None)
    found = _difference("a", "layer", [sums])
    mean, errors = torch.stack(exact).mean(0), [c - g for c, g in zip(low, exact, strict=True)]
    products = [float((a.double() * b).sum()) for a, b in combinations(errors, 2)]
    tolerance = 0.02 if math.prod(shape) > SAMPLE else 1e-5
    assert found.mean == pytest.approx(float(mean.double().square().sum()), rel=tolerance)
    assert found.bias == pytest.approx(sum(products) / len(products), rel=tolerance)
    assert sums.total_delta is not None
    assert sums.total_delta.numel() <= SAMPLE


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_rho_of_known_covariances(deviation):
    """Gradients and errors whose covariance is known: rho is that of the error over that of the batches."""
    torch.manual_seed(0)
    mean, sums, previous = torch.randn(20000), _Sums(), None
    for _ in range(5):
        exact = mean + deviation * torch.randn(20000)
        sums.add(exact + 0.1 * torch.randn(20000), exact, previous)
        previous = exact
    error = gradient_error("a", [_difference("a", "layer", [sums])])
    assert error.rho == pytest.approx(0.01 / deviation**2, rel=0.05)
    assert error.snr == pytest.approx((1 + deviation**2) / 0.01, rel=0.05)


@pytest.mark.parametrize("evaluations", [2, 4])
@pytest.mark.parametrize(("shared", "own"), [(0.0, 0.3), (0.25, 0.3), (0.25, 0.0)])
def test_bias_of_known_covariances(shared, own, evaluations):
    """Errors of a known covariance beside a mean gradient of 1: those that differ between batches average out."""
    torch.manual_seed(0)
    mean, common, sums = torch.randn(200_000), torch.randn(200_000), _Sums()
    for _ in range(evaluations):
        sums.add(mean + shared * common + own * torch.randn(200_000), mean, None)
    error = gradient_error("a", [_difference("a", "layer", [sums])])
    assert error.bias == pytest.approx(shared, abs=0.03)
    assert error.within_budget is (shared < 0.2 and own**2 < 0.1)


@pytest.mark.parametrize("noise", [0.0, 3.0, 9.0])
def test_bias_is_relative_to_the_mean_of_the_probed_batches(noise):
    """The mean of K batches has 1/K of their variance, and so a bias beside it reads less where they differ much."""
    torch.manual_seed(0)
    mean, sums = torch.randn(200_000), _Sums()
    for _ in range(4):
        exact = mean + noise * torch.randn(200_000)
        sums.add(exact + 0.3 * mean, exact, None)
    error = gradient_error("a", [_difference("a", "layer", [sums])])
    assert error.bias == pytest.approx(0.3 / math.sqrt(1 + noise**2 / 4), rel=0.03)


def test_single_batch_has_no_bias_but_shows_overflows():
    sums = _Sums()
    sums.add(torch.ones(3) * 1.1, torch.ones(3), None)
    assert _difference("a", "layer", [sums]).bias == 0.0
    sums.add(torch.ones(3) * math.inf, torch.ones(3), None)
    assert _difference("a", "layer", [sums]).bias == math.inf


def test_strided_sample_covers_every_column():
    values = torch.arange(768.0).expand(1 << 13, 768)
    sample, weight = probes._sampled(values)
    assert sample.unique().numel() == 768
    assert weight * sample.numel() == values.numel()


class Queue(nn.Module):
    """Trains against what it made in the last steps, as MoCo does, and VQ-VAE's codebooks."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.register_buffer("keys", torch.ones(2, 8, 4))

    def forward(self, x):
        made = self.encoder(x)
        loss = (made - self.keys.mean((0, 1))).square().mean()
        self.keys = torch.cat([self.keys[1:], made.detach().float()[None]])
        return loss


def test_buffers_are_restored_after_a_probe(tmp_path):
    def code():
        torch.manual_seed(0)
        model = Queue()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            optimizer.zero_grad()
            model(torch.randn(8, 4)).backward()
            optimizer.step()

    job = Job("script", "train.py", (), os.getcwd(), 6)
    plan = Plan("bfloat16", {"": "bfloat16", "encoder": "bfloat16"})
    reference = run(RunSpec(job, "reference", probe_dir=str(tmp_path), probe_save=frozenset({1, 2})), code)
    probing = {1: ("a", plan), 2: ("a", plan)}
    replay = run(RunSpec(job, "replay", probe_dir=str(tmp_path), probe_compare=probing), code)
    assert replay.losses[1] != reference.losses[1]
    assert replay.losses[3:] == reference.losses[3:]
    assert replay.differences[0].delta > 0


def test_full_disk_does_not_fail_the_script(tmp_path):
    """Found out in a later step, as the first gradients are small."""

    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(4):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    (tmp_path / "1.pt").mkdir()  # what can't be written
    job = Job("script", "train.py", (), os.getcwd(), 3)
    result = run(RunSpec(job, "reference", probe_dir=str(tmp_path), probe_save=frozenset({0, 1})), code)
    assert result.is_ours
    assert result.failure == "precaudit failed after 1 optimizer step"
    assert "set TMPDIR to a folder with more space" in result.why


def test_state_has_plain_values_only():
    lazy = nn.LazyBatchNorm1d().running_mean
    meta, sparse = torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse()
    kept = [probes._is_state(buffer) for buffer in (lazy, meta, sparse, torch.zeros(2), torch.zeros(2).long())]
    assert kept == [False, False, False, True, False]


@pytest.mark.parametrize("within", [False, True], ids=["after", "within"])
def test_optimizers_of_one_backward_pass_are_probed_in_the_same_step(tmp_path, within):
    """One optimizer a parameter, which step after the backward pass or in hooks of it."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

        def update(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in optimizers if within else ():
            parameter.register_post_accumulate_grad_hook(update)
        while True:
            model(torch.randn(8, 4)).square().mean().backward()
            for parameter in optimizers if not within else ():
                update(parameter)

    job = Job("script", "train.py", (), os.getcwd(), 5)
    plan = Plan("bfloat16", {name: "bfloat16" for name in ("", "0", "1", "2")})
    audited = frozenset({0, 2})
    spec = RunSpec(job, "reference", probe_dir=str(tmp_path), probe_save=frozenset({1, 2}), audited=audited)
    reference = run(spec, code)
    assert len(reference.losses) == 5
    tensors = [t for layer in reference.trace.layers for t in layer.tensors]
    for role in ("weight", "weight_grad", "update"):
        assert sorted(t.stats.numel for t in tensors if t.role == role) == [2, 8, 8, 32]
    replay = run(RunSpec(job, "replay", probe_dir=str(tmp_path), probe_compare={2: ("a", plan)}), code)
    assert replay.losses[2] != reference.losses[2]
    assert replay.losses[3:] == reference.losses[3:]
    assert len(replay.differences) == 2
    assert all(each.delta > 0 for each in replay.differences)


def within_a_closure(model, optimizer):
    """As Lightning's trainer accumulates gradients: the last part of a batch within the step's closure."""

    def closure():
        loss = model(torch.randn(8, 4))
        loss.backward()
        return loss

    while True:
        optimizer.zero_grad()
        closure()
        optimizer.step(closure)


def with_line_search(model, optimizer):
    """As LBFGS evaluates a closure, here at weights that it changes itself."""
    while True:
        x = torch.randn(8, 4)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize(
    ("loop", "optimizer"),
    [
        (within_a_closure, lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
        (with_line_search, lambda parameters: torch.optim.LBFGS(parameters, max_iter=3)),
    ],
)
def test_gradients_of_a_closure_are_compared_and_put_back(tmp_path, loop, optimizer):
    def code():
        torch.manual_seed(0)
        model = Queue()
        loop(model, optimizer(model.parameters()))

    job = Job("script", "train.py", (), os.getcwd(), 5)
    plan = Plan("bfloat16", {"": "bfloat16", "encoder": "bfloat16"})
    saving = frozenset({1, 2})
    reference = run(RunSpec(job, "reference", probe_dir=str(tmp_path), probe_save=saving), code)
    probing = dict.fromkeys(saving, ("a", plan))
    replay = run(RunSpec(job, "replay", probe_dir=str(tmp_path), probe_compare=probing), code)
    assert replay.losses[1] != reference.losses[1]
    assert replay.losses[3:] == reference.losses[3:]
    (difference,) = replay.differences
    assert difference.evaluations == 2
    assert 0 < difference.delta < 1e-3 * difference.gradient
