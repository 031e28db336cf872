"""Evenly spaced values and integers that a half format doesn't tell apart, where they are made in it."""

import pytest
import torch

from precaudit.planning.rules import aliased_values
from precaudit.tracing.aliasing import AliasingMode
from precaudit.tracing.records import AliasedValues, Trace


def noticed(code):
    found = []
    with AliasingMode(lambda op, result, wanted: found.append((op, wanted, result.unique().numel()))):
        code()
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("past", [-1, 0, 1, 2, 300])
def test_exact_integers_do_not_alias(dtype, past):
    """Every integer up to 2^p is exact, p being 8 and 11; the next one is not."""
    size = 2 ** {torch.bfloat16: 8, torch.float16: 11}[dtype] + 1 + past
    distinct = torch.arange(size).to(dtype).unique().numel()
    expected = [] if past <= 0 else [("arange", size, distinct)]
    assert noticed(lambda: torch.arange(size, dtype=dtype)) == expected
    assert [each[1:] for each in noticed(lambda: torch.arange(size).to(dtype))] == [each[1:] for each in expected]


def test_fine_grid_aliases():
    (found,) = noticed(lambda: torch.linspace(0, 1, 5000, dtype=torch.bfloat16))
    assert found[:2] == ("linspace", 5000)
    assert noticed(lambda: torch.linspace(0, 1, 50, dtype=torch.bfloat16)) == []


@pytest.mark.parametrize(
    "code",
    [
        lambda: torch.arange(5000),
        lambda: torch.arange(5000, dtype=torch.float32),
        lambda: torch.randn(5000).to(torch.bfloat16),
        lambda: torch.randint(256, (5000,), dtype=torch.uint8).to(torch.bfloat16),
        lambda: torch.tensor([3, 3, 3, 100]).bfloat16(),
        lambda: torch.arange(257.0).to(torch.bfloat16),
        lambda: (torch.arange(5000.0) + 0.5).to(torch.bfloat16),
        lambda: torch.where(torch.arange(5000) % 2 == 0, 0.0, -1e9).to(torch.bfloat16),
        lambda: torch.where(torch.arange(5000) % 2 == 0, 0.0, torch.finfo(torch.float32).min).to(torch.float16),
        lambda: (torch.randn(5000) * 2**24).to(torch.bfloat16),
        lambda: torch.arange(5000.0) * torch.ones(5000, dtype=torch.bfloat16),
        lambda: torch.vmap(lambda row: row.to(torch.bfloat16))(torch.arange(5000).view(2, 2500)),
        lambda: torch.zeros(5000, dtype=torch.bfloat16) + 1,
        lambda: torch.arange(1000, 1001, dtype=torch.bfloat16),
        lambda: torch.ones_like(torch.arange(8), dtype=torch.bfloat16),
        lambda: torch.arange(8).new_zeros(8, dtype=torch.bfloat16),
    ],
)
def test_values_without_aliasing_are_ignored(code):
    assert noticed(code) == []


def test_integers_stored_as_floats_alias():
    """Timesteps of a diffusion model, in the dtype of the images."""
    timesteps = torch.arange(1000).float()
    ((op, wanted, kept),) = noticed(lambda: timesteps.to(torch.bfloat16))
    assert (op, wanted, kept) == ("to", 1000, timesteps.bfloat16().unique().numel())
    assert noticed(lambda: timesteps.to(torch.float16)) == []


def test_repeated_integers_count_once():
    ids = torch.tensor([1000, 1001, 1000, 1001, 7])
    assert noticed(lambda: ids.type(torch.bfloat16)) == [("type", 3, 2)]


def test_ban_has_the_operation_name_of_the_trace():
    values = AliasedValues("model", "rotary", "arange", "bfloat16", 511.0, 512, 385, None)
    (ban,) = aliased_values(Trace(models=("model",)), [values])
    assert (ban.rule, ban.fqn, ban.op, ban.format, ban.severity) == ("PA105", "rotary", "arange", "bfloat16", "error")
    assert "512 values up to 511" in ban.why
    (ban,) = aliased_values(Trace(models=("actor", "critic")), [values])
    assert ban.fqn == "model.rotary"


def test_aliasing_without_effect_on_gradients_is_a_warning():
    """What means are divided by may be off by one in 500."""
    values = AliasedValues("model", "mean", "arange", "bfloat16", 1024.0, 1024, 512, None)
    (ban,) = aliased_values(Trace(models=("model",)), [values], {"bfloat16"})
    assert ban.severity == "warning"


def test_operations_that_are_half_in_every_call():
    seen = {}

    def stored(op, half):
        seen[op] = half and seen.get(op, True)

    pred, target = torch.ones(4, dtype=torch.float16), torch.ones(4)
    with AliasingMode(lambda op, result, wanted: None, stored):
        gap = target.to(pred.dtype) - pred
        gap.sort()
        (gap * gap + target * 2.0).mean()
    assert {op for op, half in seen.items() if half} == {"to", "sub", "sort"}
