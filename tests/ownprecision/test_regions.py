"""A script's own autocast, emulated: dtypes of CUDA's autocast inside its regions, everything as it is outside."""

import os
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from precaudit.ownprecision.regions import OwnRegions
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")
HALF = torch.float16


@pytest.fixture
def regions():
    with OwnRegions().emulated():
        yield


@pytest.mark.usefixtures("regions")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_operations_outside_of_modules_have_the_dtypes_of_cuda_s_autocast(device):
    a = torch.rand(4, 4)
    with torch.autocast(device, HALF):
        product = a @ a
        assert product.dtype == HALF
        assert torch.equal(product, (a.half().float() @ a.half().float()).half())
        assert product.softmax(-1).dtype == torch.float32
        assert (product * product).dtype == HALF
        assert (product + a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32
    assert product.mul(2).dtype == HALF


@pytest.mark.usefixtures("regions")
def test_regions_nest():
    a = torch.rand(4, 4)
    with torch.autocast("cuda", HALF):
        with torch.autocast("cuda", enabled=False):
            assert (a @ a).dtype == torch.float32
            with torch.autocast("cuda", torch.bfloat16):
                assert (a @ a).dtype == torch.bfloat16
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == HALF


@pytest.mark.usefixtures("regions")
def test_regions_are_per_thread():
    a, found = torch.rand(4, 4), []

    def work():
        found.append((a @ a).dtype)
        with torch.autocast("cuda", torch.bfloat16):
            found.append((a @ a).dtype)
        found.append((a @ a).dtype)

    with torch.autocast("cuda", HALF):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.usefixtures("regions")
def test_torch_reports_the_emulated_autocast_state():
    assert not torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled()
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        rnn = nn.GRU(4, 4)
        assert rnn(torch.rand(3, 2, 4).bfloat16())[0].dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")


def test_torch_is_restored():
    before = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast.__enter__, torch.clear_autocast_cache
    with OwnRegions().emulated():
        torch.autocast("cuda", HALF).__enter__()  # never left
    assert (
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
        torch.autocast.__enter__,
        torch.clear_autocast_cache,
    ) == before
    assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


@pytest.mark.usefixtures("regions")
def test_weights_are_cast_once_per_region():
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with torch.autocast("cuda", HALF):
        first = layer(x)
        with torch.no_grad():
            layer.weight += 1
        assert torch.equal(layer(x), first)
        torch.clear_autocast_cache()
        assert not torch.equal(layer(x), first)
        last = layer(x)
        with torch.no_grad():
            layer.weight += 1
    with torch.autocast("cuda", HALF):
        assert not torch.equal(layer(x), last)


@pytest.mark.usefixtures("regions")
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_backward_equals_the_forward(reentrant):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.rand(4, 8, requires_grad=True)

    def gradients(forward):
        model.zero_grad()
        with torch.autocast("cuda", HALF):
            loss = forward(x).square().mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients(model)
    again = gradients(lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def trained(precision, steps=6, **options):
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        while True:
            x = torch.randn(32, 8)
            with torch.autocast("cuda", torch.bfloat16):
                loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), steps), "x", precision=precision, **options), code)
    assert result.error is None
    return result.losses


def test_run_as_written_equals_the_run_of_an_equal_plan():
    from precaudit.model import Plan

    planned = trained("plan", plan=Plan(default="bfloat16"))
    assert trained("as-written") == planned
    assert planned != trained("float32")


def test_native_autocast_is_not_emulated():
    assert trained("as-written", execution="native") == trained("float32")  # "cuda" is off on a CPU
