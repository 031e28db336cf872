"""Compilers are switched off, but for torch's own use of them."""

import pytest
import torch
from torch import nn

from precaudit.instrument.eager import eager_only


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_everything_runs_eagerly():
    calls = []

    def function(x):
        calls.append(1)
        return x * 2

    with eager_only():
        assert torch.compile(function) is function
        assert torch.compile(mode="max-autotune")(function) is function
        model = nn.Linear(2, 2)
        assert torch.compile(model, dynamic=True) is model
        model.compile()
        model(torch.ones(2, 2))
        assert torch.jit.script(function) is function
    assert torch.compile is not None
    assert torch.jit._state._enabled.enabled


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchs_own_scripting_still_compiles():
    """As its rules for forward-mode derivatives, which it makes at the first of them."""
    made = {"__name__": "torch._decomp.decompositions_for_jvp", "torch": torch, "function": _doubled}
    with eager_only():
        exec("scripted = torch.jit.script(function)", made)
        assert torch.jit.script(_doubled) is _doubled
    assert made["scripted"].graph is not None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchs_own_classes_find_the_names_of_their_module():
    """As its functional optimizers do, which `torch.distributed.optim` imports."""
    made = {"__name__": "torch.distributed.optim.functional", "torch": torch, "Doubling": _Doubling, "known": _doubled}
    with eager_only():
        exec("torch.jit.script(Doubling)", made)


class _Doubling:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = known(x)  # noqa: F821 (of the module that has it compiled)


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2
