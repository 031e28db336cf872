"""Emulated dtypes against those of CUDA autocast itself, which torch's dispatcher tells of tensors without memory.

What an operation calls inside torch is cast there as well, which no table shows.
"""

import pytest
import torch
import torch.nn.functional as F
from emulation_models import inside
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

UNARY = (
    "abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad erf erfc erfinv exp exp2 expm1 floor frac lgamma "
    "digamma log log10 log1p log2 logit neg reciprocal relu round rsqrt sigmoid sign sin sinc sinh sqrt square tan "
    "tanh trunc positive "
    "amax amin mean median mode nanmean nansum prod std sum var std_mean var_mean aminmax argmax norm logcumsumexp "
    "trapezoid trapz cumulative_trapezoid diff sort cumsum cumprod logsumexp softmax log_softmax renorm"
).split()
ARGUMENTS = {
    **dict.fromkeys("cumsum cumprod logsumexp softmax log_softmax logcumsumexp".split(), (0,)),
    "renorm": (2, 0, 1.0),
}
FUNCTIONS = {name: lambda x, name=name: getattr(torch, name)(x, *ARGUMENTS.get(name, ())) for name in UNARY} | {
    "x ** 3": lambda x: x**3,
    "2 ** x": lambda x: 2**x,
    "1 / x": lambda x: 1 / x,
    "sum_to_size": lambda x: x.sum_to_size(1, 4),
    "linalg.norm": lambda x: torch.linalg.norm(x),
    "linalg.vector_norm": lambda x: torch.linalg.vector_norm(x, dim=0),
    "normalize": lambda x: F.normalize(x),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "rms_norm": lambda x: F.rms_norm(x, (4,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    **{name: lambda x, name=name: getattr(F, name)(x) for name in "gelu silu mish elu selu softsign hardswish".split()},
    **{name: lambda x, name=name: getattr(F, name)(x) for name in "softplus logsigmoid tanhshrink hardtanh".split()},
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "scatter_add": lambda x: x.scatter_add(0, torch.zeros(4, 4, dtype=torch.int64, device=x.device), x),
    "embedding": lambda x: F.embedding(torch.zeros(2, dtype=torch.int64, device=x.device), x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1e4),
    "dropout": lambda x: F.dropout(x, 0.0),
}
PAIRS = {
    **{name: lambda a, b, name=name: getattr(torch, name)(a, b) for name in "matmul mm inner cdist dist mul".split()},
    **{name: lambda a, b, name=name: getattr(F, name)(a, b) for name in "linear mse_loss l1_loss".split()},
    **{name: lambda a, b, name=name: getattr(torch, name)(a, b) for name in "add atan2 maximum hypot pow".split()},
    "kl_div": lambda a, b: F.kl_div(a, b, reduction="batchmean"),
    "smooth_l1_loss": lambda a, b: F.smooth_l1_loss(a, b),
    "dot": lambda a, b: torch.dot(a.flatten(), b.flatten()),
    "tensordot": lambda a, b: torch.tensordot(a, b),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "bilinear": lambda a, b: F.bilinear(a, b, torch.ones(3, 4, 4, device=a.device, dtype=b.dtype)),
    "cross": lambda a, b: torch.cross(a.narrow(1, 0, 3), b.narrow(1, 0, 3), dim=1),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "lerp": lambda a, b: torch.lerp(a, b.to(a.dtype), 0.5),
    "cosine_similarity": lambda a, b: F.cosine_similarity(a, b),
    "binary_cross_entropy_with_logits": lambda a, b: F.binary_cross_entropy_with_logits(a, b),
    "attention": lambda a, b: F.scaled_dot_product_attention(a.unsqueeze(0), b.unsqueeze(0), b.unsqueeze(0)),
    "prelu": lambda a, b: F.prelu(a, b.select(0, 0)),
    "stack": lambda a, b: torch.stack([a, b]),
}


def dtypes(result):
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return [part.dtype for part in parts]


def on_cuda(function, *kinds):
    """Result dtypes in a region of CUDA autocast, for 4 by 4 inputs of these dtypes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(4, 4, dtype=kind, device="cuda") for kind in kinds]
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            return dtypes(function(*inputs))
        finally:
            torch.set_autocast_enabled("cuda", False)


def emulated(function, *kinds):
    inputs = [torch.linspace(0.1, 0.9, 16).reshape(4, 4).to(kind) for kind in kinds]
    return dtypes(inside(lambda model: function(*inputs), "float16")[0])


@pytest.mark.parametrize("kind", [torch.float16, torch.float32], ids=["half", "float"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_input(name, kind):
    assert emulated(FUNCTIONS[name], kind) == on_cuda(FUNCTIONS[name], kind)


@pytest.mark.parametrize("second", [torch.float16, torch.float32], ids=["half", "float"])
@pytest.mark.parametrize("first", [torch.float16, torch.float32], ids=["half", "float"])
@pytest.mark.parametrize("name", PAIRS)
def test_two_inputs(name, first, second):
    assert emulated(PAIRS[name], first, second) == on_cuda(PAIRS[name], first, second)


class LogSoftmaxes(TorchDispatchMode):
    """Keeps the dtypes of what `log_softmax` returns."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._log_softmax.default:
            self.seen.append(result.dtype)
        return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32], ids=["half", "float"])
def test_cross_entropy_asks_for_log_probabilities_in_the_dtype_of_its_logits(kind, smoothing):
    def loss(x):
        return F.cross_entropy(x, torch.zeros(4, dtype=torch.int64, device=x.device), label_smoothing=smoothing)

    with LogSoftmaxes() as inside_torch:
        assert on_cuda(loss, kind) == [torch.float32]
    assert inside_torch.seen == [kind]
