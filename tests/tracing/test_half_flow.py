"""Which results autocast would store in half: the tracer's flags, against the dtypes of an emulated run."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traced import tracing
from training_styles import Wrapping, numbers

from precaudit.execution.emulated import Emulator
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.instrument.torch_function import tensors_in
from precaudit.model import Plan
from precaudit.tracing.ops import HALF_FLAG, TraceMode
from precaudit.tracing.tracer import _MAX_ORDINAL


class Dtypes:
    """A scope listener and op sink: notes the dtype of every result, under the plan that runs inside."""

    def __init__(self):
        self.mode, self.names, self.scopes = TraceMode(self), ModuleNames(), None
        self.half = {}

    def entered(self, frame):
        if frame.is_outermost:
            self.mode.__enter__()

    def left(self, frame, output):
        if frame.is_outermost:
            self.mode.__exit__(None, None, None)
        return output

    def begin(self, call, half):
        frame, op = self.scopes.current, call.op
        frame.op_counts[op] = frame.op_counts.get(op, 0) + 1
        return frame.name.fqn, op, frame.op_counts[op] - 1

    def read_half_dtype(self): ...

    def record(self, token, outputs):
        self.half[token] = all(t.dtype == torch.bfloat16 for t in outputs)


def emulated_dtypes(model, inputs):
    dtypes = Dtypes()
    dtypes.scopes = scopes = ModuleScopes(dtypes.names)
    scopes.listeners += [Emulator(Plan(default="bfloat16"), scopes), dtypes]
    with scopes.installed():
        model(*inputs)
    return dtypes.half


def traced_flags(model, inputs):
    with tracing() as traced:
        model(*inputs)
        return {
            (name.fqn, op, ordinal): slot.half for (name, op, ordinal), slot in traced.tracer.ops.items() if slot.calls
        }


def rms_norm(self, x):
    h = self.lin(x)
    y = h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    z = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    return self.lin(y.type_as(h)) + z + h.to(torch.float32).abs()


def handmade_attention(self, x):
    q, k, v = self.qkv(x).chunk(3, -1)
    scores = (q @ k.transpose(-1, -2)) * 0.5
    scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    scores = torch.where(scores < -100, scores, scores.clamp(max=50))
    return torch.einsum("bij,bjk->bik", F.dropout(scores.softmax(-1), 0.1), v)


def residual(self, tokens):
    x = self.table(tokens) + self.position
    for layer in (self.a, self.b):
        x = x + layer(self.norm(x)).relu()
    return self.a(x) + torch.tensor(2.0) * self.b(x)


def mixtures(self, x):
    h = self.lin(x)
    parts = [h * 2, h + x, h * torch.tensor(0.5), torch.cat([h, h]), torch.cat([h, x]), torch.stack([h, h]).mean(0)]
    parts += [1 / h, 1 - h, h**2, -h, h.exp(), h.sigmoid(), F.silu(h), F.gelu(h), h.std(), h.max(), h.cumsum(0)]
    parts += [
        torch.addcmul(h, h, h),
        torch.addcmul(h, h, x),
        F.normalize(h),
        h.norm(),
        h.amax(-1),
        torch.lerp(h, h, 0.5),
    ]
    parts += [h.split(2, -1)[0] * 3, h.view(-1)[1:] * 3, h[0] * x[0], h.t().contiguous() * 2, torch.zeros_like(h) + h]
    parts += [
        torch.zeros(5, 4) + h,
        F.pad(h, (1, 1)) * 2,
        torch.max(h, 0).values * 2,
        torch.minimum(h, x),
        h.mean() * x,
    ]
    parts += [
        F.interpolate(h[None], scale_factor=2.0),
        F.layer_norm(h, (4,)),
        F.group_norm(h[None].mT, 2),
        h.logsumexp(0),
    ]
    parts += [
        h.float() * 2,
        h.to(torch.float32) * 2,
        h.double() * 2,
        h.type_as(x) * 2,
        h.to(x) * 2,
        h.half().float() + 1,
    ]
    return sum(part.double().sum() for part in parts)


def made_like(self, x):
    h = self.lin(x)
    wide = [torch.zeros_like(h, dtype=torch.float32) - 1e38, h.new_ones(4, dtype=torch.float32) * 2]
    wide += [h.mean(0, dtype=torch.float32) * 2]
    low = [torch.zeros_like(h) - 1, h.new_ones(4) * 2, torch.zeros_like(h, dtype=h.dtype) - 1]
    return sum(part.double().sum() for part in wide + low)


def in_place(self, x):
    h = self.lin(x)
    h.mul_(2)
    h += x
    y = h * 1.5
    f = x.clone()
    f.add_(h)
    return (f * 2) @ y.t()


MODELS = {
    "transformer layer": lambda: (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), [numbers(0, 2, 3, 4)]),
    "attention weights": lambda: (
        Wrapping(lambda self, x: self.attn(x, x, x), attn=nn.MultiheadAttention(4, 2)),
        [numbers(0, 3, 2, 4)],
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 2),
            nn.LogSoftmax(-1),
        ),
        [numbers(0, 3, 1, 6, 6)],
    ),
    "recurrent": lambda: (
        Wrapping(lambda self, x: self.head(self.rnn(x)[0]).tanh(), rnn=nn.GRU(4, 4), head=nn.Linear(4, 2)),
        [numbers(0, 3, 2, 4)],
    ),
    "rms norm": lambda: (Wrapping(rms_norm, lin=nn.Linear(4, 4)), [numbers(0, 5, 4)]),
    "handmade attention": lambda: (Wrapping(handmade_attention, qkv=nn.Linear(4, 12)), [numbers(0, 2, 4, 4)]),
    "mixtures": lambda: (Wrapping(mixtures, lin=nn.Linear(4, 4)), [numbers(0, 5, 4)]),
    "made like": lambda: (Wrapping(made_like, lin=nn.Linear(4, 4)), [numbers(0, 5, 4)]),
    "in place": lambda: (Wrapping(in_place, lin=nn.Linear(4, 4)), [numbers(0, 5, 4)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_flags_are_the_dtypes_of_an_emulated_run(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    flags, dtypes = traced_flags(model, inputs), emulated_dtypes(model, inputs)
    shared = {key for key in flags.keys() & dtypes.keys() if key[2] < _MAX_ORDINAL}
    assert len(shared) >= 0.9 * len(flags)
    assert {key for key in shared if flags[key] != dtypes[key]} == set()
    assert any(flags.values())


def test_a_residual_stream_is_float32_where_the_embedding_is():
    model = Wrapping(residual, table=nn.Embedding(9, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4), norm=nn.LayerNorm(4))
    model.position = nn.Parameter(torch.zeros(3, 4))
    flags = traced_flags(model, [torch.tensor([[1, 2, 3]])])
    assert flags == emulated_dtypes(model, [torch.tensor([[1, 2, 3]])])
    assert [flags["", "add", i] for i in range(4)] == [False, False, False, True]
    assert flags["", "relu", 0]
    assert not flags["norm", "layer_norm", 0]
    assert flags["a", "linear", 0]


def test_parameters_and_inputs_are_not_marked():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), numbers(0, 5, 4)
    traced_flags(model, [x])
    for tensor in (x, *tensors_in(list(model.parameters()))):
        assert not hasattr(tensor, HALF_FLAG)


@pytest.mark.parametrize("add", [torch.Tensor.index_add_, torch.Tensor.index_add, torch.Tensor.scatter_add_])
def test_a_sum_by_index_into_zeros_of_the_dtype_that_was_read_is_half(add):
    """`torch.zeros(..., dtype=x.dtype)` is float32 in a trace; torch adds only what has one dtype."""
    index = torch.zeros(4096, 4, dtype=torch.long)

    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            ones = self.lin(x)[:1].expand(4096, 4) * 0 + 1
            rows = index[:, 0] if "index" in add.__name__ else index
            return add(torch.zeros(1, 4, dtype=ones.dtype), 0, rows, ones) / 2

    with tracing(shadowed=lambda step: True, formats=("bfloat16",)) as traced:
        Pooling()(torch.randn(2, 4)).sum().backward()
    op = traced.op("", add.__name__.rstrip("_"))
    assert op.half
    assert traced.op("", "div").half
    assert op.local_error["bfloat16"] == pytest.approx(1 - 256 / 4096)


def test_a_sum_by_index_in_place_has_its_error_measured_as_any_other():
    """The usual form: of 4096 equal addends bfloat16 adds up 256."""
    index = torch.zeros(4096, dtype=torch.long)

    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            ones = self.lin(x)[:1].expand(4096, 4) * 0 + 1
            return ones.new_zeros(1, 4).index_add_(0, index, ones)

    model = Pooling()
    with tracing(shadowed=lambda step: True, formats=("bfloat16",)) as traced:
        before = model(torch.randn(2, 4))
        before.sum().backward()
    assert before.eq(4096).all()
    assert traced.op("", "index_add").local_error["bfloat16"] == pytest.approx(1 - 256 / 4096)


def test_a_running_sum_in_place_has_the_error_of_its_last_additions():
    """A bfloat16 buffer stops at 256 ones. What float32 adds up is in no danger, nor is a sum of a few values."""

    class Pooling(nn.Module):
        def __init__(self, dtype, length):
            super().__init__()
            self.lin, self.dtype, self.length = nn.Linear(4, 4), dtype, length

        def forward(self, x):
            ones = self.lin(x) * 0 + 1
            total = torch.zeros_like(ones, dtype=self.dtype or ones.dtype)
            for _ in range(self.length):
                total += ones
            return total

    def measured(*args):
        with tracing(shadowed=lambda step: True, formats=("bfloat16",)) as traced:
            total = Pooling(*args)(torch.randn(2, 4))
            total.sum().backward()
        assert total.eq(args[-1]).all()
        return traced.op("", "add")

    assert measured(None, 600).local_error["bfloat16"] == pytest.approx(1.0)
    assert measured(None, 8).local_error["bfloat16"] < 0.25
    assert measured(None, 600).in_place
    wide = measured(torch.float32, 600)
    assert (wide.in_place, wide.local_error["bfloat16"]) == (False, 0.0)


class Timestep(nn.Module):
    """Angles of whole numbers up to 999, in the dtype of the images; `read` casts them to it."""

    def __init__(self, read):
        super().__init__()
        self.lin, self.read = nn.Linear(4, 4), read

    def forward(self, x):
        h = self.lin(x)
        return h + self.read(self, h, torch.arange(996.0, 1000.0)).sin()


def to_what_it_read(model, h, times):
    return times.to(h.dtype)


def to_what_it_read_and_its_device(model, h, times):
    return times[:2].to(device=h.device, dtype=h.dtype).repeat(2)


def to_float32_on_another_line(model, h, times):
    assert h.dtype in (torch.float32, torch.bfloat16)
    return times.to(torch.float32)


def to_float32_after_another_operation(model, h, times):
    return (times.to(h.dtype) * 0).float() + times.to(torch.float32)


@pytest.mark.parametrize(
    ("read", "half"),
    [
        (to_what_it_read, True),
        (to_what_it_read_and_its_device, True),
        (to_float32_on_another_line, False),
        (to_float32_after_another_operation, False),
    ],
)
def test_a_cast_to_the_dtype_that_was_read_of_a_half_is_presumed_to_round(read, half):
    """Whether it is half, a run in half tells: until then no rule takes it for such."""
    with tracing(shadowed=lambda step: True, formats=("bfloat16",)) as traced:
        Timestep(read)(torch.randn(2, 4)).sum().backward()
    sine = traced.op("", "sin")
    assert not sine.half
    assert (sine.local_error["bfloat16"] > 0.1) is half
