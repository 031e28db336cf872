"""What a script casts in hooks and in backward passes of its own."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from precaudit.ownprecision.float32 import CastWatch, everywhere, float32_only
from precaudit.ownprecision.records import OwnPrecision


class HalfBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 1.0 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


def _hooked(x):
    x.register_hook(lambda gradient: gradient.to(torch.float16).to(gradient.dtype))
    return 1.0 * x


def _checkpointed(x):
    return checkpoint(lambda x: x.half().float(), x, use_reentrant=True)


BACKWARDS = {
    "a tensor's": lambda loss, x: loss.backward(),
    "of several": lambda loss, x: torch.autograd.backward([loss]),
    "grad": lambda loss, x: setattr(x, "grad", torch.autograd.grad(loss, x)[0]),
}


@pytest.mark.parametrize("passed", BACKWARDS)
@pytest.mark.parametrize("cast", [HalfBackward.apply, _hooked])
def test_casts_in_a_custom_backward_are_recorded_and_undone(cast, passed):
    """Gradients of 1e-9 are zero in float16."""
    settings, x = OwnPrecision(), torch.ones(3, requires_grad=True)
    with everywhere(CastWatch(settings)):
        BACKWARDS[passed](cast(x).sum() * 1e-9, x)
    assert [cast.place.path for cast in settings.casts] == [__file__]
    assert not x.grad.any()
    x.grad = None
    with float32_only():
        BACKWARDS[passed](cast(x).sum() * 1e-9, x)
    assert torch.equal(x.grad, torch.full((3,), 1e-9))


def test_recomputed_forward_is_float32():
    x = torch.full((3,), 1e-9, requires_grad=True)
    with float32_only():
        out = _checkpointed(x)
        out.square().sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2e-9))


def test_mode_is_on_once_in_nested_backward_passes():
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    class Inner(HalfBackward):
        @staticmethod
        def backward(ctx, gradient):
            with torch.enable_grad():
                y = torch.ones(3, requires_grad=True)
                (part,) = torch.autograd.grad(HalfBackward.apply(y).sum(), y)
            return gradient * part

    with everywhere(Watch()):
        Inner.apply(torch.ones(3, requires_grad=True)).sum().backward()
    assert seen.count("half") == 1
