"""A traced script makes the very numbers it makes alone, and nothing of the tracer is left afterwards."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.modules import module as torch_modules
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils import checkpoint as checkpointing
from traced import tracing
from training_styles import STYLES

OPTIONS = {
    "plain": {},
    "shadow": {
        "shadowed": lambda step: True,
        "formats": ("bfloat16", "float16", "tf32", "float8_e4m3"),
        "per_step": True,
    },
    "watch": {"watch": True},
    "sampled": {"audited": lambda step: step % 2 == 0, "per_step": True},
}


def traces_of_us():
    """Everything global that an instrument could leave behind."""
    modules = {
        name: dict(value) for name, value in vars(torch_modules).items() if name.startswith("_global_") and value
    }
    return (
        modules,
        dict(_global_optimizer_pre_hooks),
        dict(_global_optimizer_post_hooks),
        torch.autograd.backward,
        torch.autograd.grad,
        torch.amp.GradScaler.scale,
        torch.amp.GradScaler.__init__,
        Optimizer.__init__,
        checkpointing.CheckpointFunction.forward,
        checkpointing._checkpoint_without_reentrant_generator,
        torch.overrides._get_current_function_mode_stack(),
        torch.compile,
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("style", STYLES)
def test_losses_gradients_weights_and_random_numbers_are_bit_identical(style, options):
    torch.manual_seed(0)
    alone = [*STYLES[style](), torch.rand(3)]
    torch.manual_seed(0)
    with tracing(**OPTIONS[options]) as traced:
        made = [*STYLES[style](), torch.rand(3)]
    assert traced.trace.layers
    assert len(made) == len(alone)
    for a, b in zip(alone, made, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_torch_and_model_are_restored(error):
    before = traces_of_us()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))

    def script():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        if error:
            model[1].register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(error("stop")))
            model(torch.ones(1, 2))

    with pytest.raises(error) if error else nullcontext(), tracing(**OPTIONS["shadow"]):
        script()
    assert traces_of_us() == before
    for parameter in model.parameters():
        assert not parameter._backward_hooks
        assert not hasattr(parameter, "_precaudit_half")
