"""Emulated precision, operation by operation, against references written out by hand.

`torch.autocast("cpu")` is no oracle here: it rounds at other places than CUDA's.
"""

import copy
import math
from collections import OrderedDict, namedtuple
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from emulation_models import Inside, emulate, inside, plan_for, weights
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from precaudit.execution.apply import apply
from precaudit.execution.rounding import quantize, round_mantissa
from precaudit.model import Plan

Pair = namedtuple("Pair", "a b")
HALVES = [torch.bfloat16, torch.float16]
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
halves = pytest.mark.parametrize("dtype", HALVES, ids=NAMES.get)


def rounded(tensor, dtype):
    return tensor.detach().to(dtype).float()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


# ---------------------------------------------------------------- products


@halves
def test_two_linear_layers_forward_and_backward(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, g = weights(8, 6).requires_grad_(), weights(8, 3, seed=1)
    y = emulate(model, NAMES[dtype], x)
    y.backward(g)

    def h(tensor):
        return rounded(tensor, dtype)

    w1, b1, w2, b2 = (h(p) for p in model.parameters())
    a = h(F.linear(h(x), w1, b1))
    assert y.dtype == torch.float32
    assert torch.equal(y, h(F.linear(a.relu(), w2, b2)))
    go = h(g)
    ga = h(go @ w2) * (a > 0)
    grads = gradients(model)
    assert torch.equal(grads["2.weight"], h(go.t() @ a.relu()))
    assert torch.equal(grads["2.bias"], h(go.sum(0)))
    assert torch.equal(grads["0.weight"], h(ga.t() @ h(x)))
    assert torch.equal(grads["0.bias"], h(ga.sum(0)))
    assert torch.equal(x.grad, h(ga @ w1))


PRODUCTS = {
    "@": lambda a, b: a @ b,
    "matmul": torch.matmul,
    "mm": torch.mm,
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "einsum": lambda a, b: torch.einsum("ij,jk->ik", a, b),
    "linalg.matmul": torch.linalg.matmul,
    "mv": lambda a, b: torch.mv(a, b[:, 0]),
    "multi_dot": lambda a, b: torch.linalg.multi_dot([a, b]),
    "linear": lambda a, b: F.linear(a, b.t()),
    "addmm": lambda a, b: torch.addmm(a[0, 0], a, b),
    "baddbmm": lambda a, b: torch.baddbmm(a[0, 0], a[None], b[None]),
    "conv1d": lambda a, b: F.conv1d(a[None], b.t()[:, :, None].expand(4, 4, 2)),
    "conv2d": lambda a, b: F.conv2d(a[None, None], b[None, None, :2, :2]),
    "conv_transpose2d": lambda a, b: F.conv_transpose2d(a[None, None], b[None, None, :2, :2]),
    "prelu": lambda a, b: F.prelu(a, b[0, :1]),
}


@halves
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_round_their_operands_and_their_result_once(name, dtype):
    a, b = weights(4, 4), weights(4, 4, seed=1)
    got, output = inside(lambda model, *args: PRODUCTS[name](*args), NAMES[dtype], a, b)
    assert got.dtype == dtype
    assert torch.equal(got, PRODUCTS[name](rounded(a, dtype), rounded(b, dtype)).to(dtype))
    assert output.dtype == torch.float32


@halves
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "float"])
def test_attention(dtype, mask):
    q, k, v = (weights(2, 2, 5, 4, seed=i) for i in range(3))
    boolean = torch.ones(5, 5, dtype=torch.bool).tril()
    options = {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean},
        "float": {"attn_mask": weights(5, 5, seed=9)},
    }[mask]
    got, _ = inside(lambda model, *args: F.scaled_dot_product_attention(*args, **options), NAMES[dtype], q, k, v)
    reference = {key: rounded(o, dtype) if key == "attn_mask" and mask == "float" else o for key, o in options.items()}
    expected = F.scaled_dot_product_attention(*(rounded(t, dtype) for t in (q, k, v)), **reference)
    assert torch.equal(got, expected.to(dtype))


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": torch.ones(48, 48, dtype=torch.bool).tril(5)},
    "a row masked throughout": {"attn_mask": torch.ones(48, 48, dtype=torch.bool).tril(-1)},
    "learned mask": {"attn_mask": weights(48, 48, seed=7, scale=3.0).requires_grad_()},
    "dropout": {"dropout_p": 0.25},
    "causal dropout": {"dropout_p": 0.25, "is_causal": True, "scale": 0.5},
    "grouped": {"enable_gqa": True},
    "grouped dropout": {"enable_gqa": True, "dropout_p": 0.25},
}


@halves
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION.keys())
def test_attention_takes_what_scores_have_in_common_from_its_rounded_result(options, dtype):
    """As in the backward pass of FlashAttention: rowsum(dO * O), with O as it was stored (arXiv:2510.04212)."""
    heads = 2 if options.get("enable_gqa") else 4
    q, gradient = weights(2, 4, 48, 16), weights(2, 4, 48, 16, seed=5)
    k, v = (weights(2, heads, 48, 16, seed=i) + 8 * weights(1, heads, 1, 16, seed=8 + i) for i in (1, 2))
    factors = [tensor.clone().requires_grad_() for tensor in (q, k, v)]

    def attention(model, *factors):
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(*factors, **options)

    output = inside(attention, NAMES[dtype], *factors)[1]
    mask = options.get("attn_mask", torch.ones(48, 48, dtype=torch.bool))
    mask.grad = None
    output.backward(gradient)

    torch.manual_seed(0)
    kept = F.dropout(torch.ones(2, 4, 48, 48), options.get("dropout_p", 0.0)).double()
    hq, hk, hv, go = (rounded(tensor, dtype).double() for tensor in (q, k, v, gradient))
    hk, hv = (tensor.repeat_interleave(4 // heads, 1) for tensor in (hk, hv))
    scale, mask = options.get("scale", 0.25), mask.tril() if "is_causal" in options else mask
    scores = hq @ hk.mT * scale
    added = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + rounded(mask, dtype)
    p = added.softmax(-1).nan_to_num(0.0)

    def of_scores(result):
        return p * (kept * (go @ hv.mT) - (go * result).sum(-1, keepdim=True))

    result, eps = (p * kept) @ hv, torch.finfo(dtype).eps
    expected, exact = of_scores(rounded(result, dtype)) @ hk * scale, of_scores(result) @ hk * scale
    assert torch.allclose(output.double(), result, rtol=eps, atol=eps)
    assert (expected - exact).norm() > 5 * eps * exact.norm()
    assert (factors[0].grad - expected).norm() < 0.25 * (expected - exact).norm()
    if mask.requires_grad:  # the scores' own gradient, but for the sum
        expected, exact = (of_scores(each).sum((0, 1)) for each in (rounded(result, dtype), result))
        assert (mask.grad - expected).norm() < 0.25 * (expected - exact).norm()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_checkpointed_attention_has_the_same_gradients(dropout, reentrant):
    """Without re-entering, torch recomputes just as far as the backward pass needs tensors."""
    q, gradient = weights(2, 4, 48, 16), weights(2, 4, 48, 16, seed=5)
    k, v = (weights(2, 4, 48, 16, seed=i) + 8 * weights(1, 4, 1, 16, seed=8 + i) for i in (1, 2))

    def attention(*factors):
        return F.scaled_dot_product_attention(*factors, dropout_p=dropout)

    found = []
    for repeat in (lambda *factors: checkpoint(attention, *factors, use_reentrant=reentrant), attention):
        factors = [tensor.clone().requires_grad_() for tensor in (q, k, v)]

        def computed(model, *factors, repeat=repeat):
            torch.manual_seed(0)
            return repeat(*factors)

        inside(computed, "bfloat16", *factors)[1].backward(gradient)
        found.append([factor.grad for factor in factors])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@halves
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_round_weights_inputs_and_outputs(kind, dtype):
    torch.manual_seed(0)
    layer, x = kind(3, 4, num_layers=2, batch_first=True), weights(2, 5, 3)
    output, state = emulate(layer, NAMES[dtype], x)
    reference = copy.deepcopy(layer)
    with torch.no_grad():
        for p in reference.parameters():
            p.copy_(rounded(p, dtype))
        expected, last = reference(rounded(x, dtype))
    assert torch.equal(output, rounded(expected, dtype))
    for got, wanted in zip(state if kind is nn.LSTM else [state], last if kind is nn.LSTM else [last], strict=True):
        assert torch.equal(got, rounded(wanted, dtype))
    output.sum().backward()
    assert torch.equal(layer.weight_ih_l0.grad, rounded(layer.weight_ih_l0.grad, dtype))


@halves
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("own", ["half", "float32"])
def test_recurrent_layers_accept_half_inputs(kind, own, dtype):
    """They refuse an input that isn't of their weights' dtype, unless autocast is on."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), kind(3, 4, batch_first=True)), weights(2, 5, 3)
    output, _ = emulate(model, NAMES[dtype], x, modules={"1": "float32" if own == "float32" else NAMES[dtype]})
    assert not torch._C._is_any_autocast_enabled()
    with torch.no_grad():
        inner = F.linear(rounded(x, dtype), rounded(model[0].weight, dtype), rounded(model[0].bias, dtype))
        if own == "half":
            for p in model[1].parameters():
                p.copy_(rounded(p, dtype))
        expected, _ = model[1](rounded(inner, dtype))
    if own == "half":
        assert torch.equal(output, rounded(expected, dtype))
    else:  # torch takes another kernel without gradients, which sums in another order
        torch.testing.assert_close(output, expected)


def cell_by_hand(name, x, state, w, r, bw, br, dtype):
    """A recurrent cell as torch's CUDA kernels compute it."""

    def h(value):
        return value.to(dtype).float()

    if name == "RNNCell":
        return torch.tanh((state @ r.t() + br).to(dtype) + (x @ w.t() + bw).to(dtype)).float()
    if name == "GRUCell":
        (ir, iz, i), (hr, hz, n) = (h(x @ w.t()) + bw).chunk(3, 1), (h(state @ r.t()) + br).chunk(3, 1)
        new = torch.tanh(i + torch.sigmoid(ir + hr) * n)
        return h(new + torch.sigmoid(iz + hz) * (state - new))
    i, f, g, o = ((h(x @ w.t()) + bw) + (h(state[0] @ r.t()) + br)).chunk(4, 1)
    new = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return h(torch.sigmoid(o) * torch.tanh(new)), h(new)


@halves
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_round_both_products_and_the_state(kind, dtype):
    torch.manual_seed(0)
    layer, x = kind(6, 40), weights(5, 6)
    state = (weights(5, 40, seed=1), weights(5, 40, seed=2)) if kind is nn.LSTMCell else weights(5, 40, seed=1)
    got = emulate(layer, NAMES[dtype], x, state)

    def h(value):
        return value.to(dtype).float()  # and its gradient, as autocast's casts do

    parameters = (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)
    own = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    known = tuple(map(h, state)) if isinstance(state, tuple) else h(state)
    expected = cell_by_hand(kind.__name__, h(x), known, *map(h, own), dtype)
    for ours, theirs in zip(*((all if isinstance(all, tuple) else (all,)) for all in (got, expected)), strict=True):
        assert torch.equal(ours, theirs)
    torch.stack(got if isinstance(got, tuple) else (got,)).sum().backward()
    torch.stack(expected if isinstance(expected, tuple) else (expected,)).sum().backward()
    for ours, theirs in zip(parameters, own, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_products_of_a_recurrent_cell_that_overflow_do_not_cancel(kind):
    layer, x = kind(1, 1), torch.full((1, 1), 60000.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(2.0 if parameter is layer.weight_ih else -2.0 if parameter is layer.weight_hh else 0.0)
    output = emulate(layer, "float16", x, (x, x) if kind is nn.LSTMCell else x)
    assert output[0].isnan().all()


@halves
def test_packed_sequences(dtype):
    layer = nn.LSTM(3, 4, batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(weights(2, 5, 3), torch.tensor([5, 2]), batch_first=True)
    output, _ = emulate(layer, NAMES[dtype], packed)
    assert output.data.dtype == torch.float32
    assert torch.equal(output.data, rounded(output.data, dtype))


@halves
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_expanded(dtype, need_weights):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = weights(3, 5, 8)
    model = Inside(lambda outer, t: outer.layer(t, t, t, need_weights=need_weights))
    model.layer = layer
    output, attention = emulate(model, NAMES[dtype], x)

    def h(tensor):
        return rounded(tensor, dtype)

    projected = h(F.linear(h(x).transpose(0, 1), h(layer.in_proj_weight), h(layer.in_proj_bias)))
    q, k, v = (t.reshape(5, 6, 4).transpose(0, 1) for t in projected.chunk(3, -1))
    if need_weights:
        scaled = (q.to(dtype) * math.sqrt(1.0 / 4)).float()
        share = h(scaled @ k.transpose(1, 2)).softmax(-1)
        mixed = h(h(share) @ v)
        assert torch.equal(attention, share.view(3, 2, 5, 5).mean(1))
    else:
        heads = (t.view(3, 2, 5, 4) for t in (q, k, v))
        mixed = h(F.scaled_dot_product_attention(*heads)).view(6, 5, 4)
        assert attention is None
    joined = mixed.transpose(0, 1).reshape(15, 8)
    expected = h(F.linear(joined, h(layer.out_proj.weight), h(layer.out_proj.bias)))
    assert torch.equal(output, expected.view(5, 3, 8).transpose(0, 1))


# ---------------------------------------------------------------- everything else


FLOAT32_OPS = {
    "softmax": lambda x: x.softmax(-1),
    "F.log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "group_norm": lambda x: F.group_norm(x[None], 2),
    "sum": lambda x: x.sum(),
    "exp": torch.exp,
    "pow": lambda x: x**2,
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "1 / x": lambda x: 1 / (x.abs() + 1),
    "norm": lambda x: x.norm(),
    "linalg.norm": torch.linalg.norm,
    "cdist": lambda x: torch.cdist(x, x),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(0)),
    "cumsum": lambda x: x.cumsum(0),
    "mse_loss": lambda x: F.mse_loss(x, x.flip(0)),
    "cross_entropy": lambda x: F.cross_entropy(x.float(), torch.arange(4)),
    "interpolate": lambda x: F.interpolate(x[None, None], scale_factor=2.0),
    "logsumexp": lambda x: torch.special.logsumexp(x, 0),
    "arccos": lambda x: torch.arccos(x.clamp(-0.5, 0.5)),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(0)),
}


@halves
@pytest.mark.parametrize("name", FLOAT32_OPS)
def test_float32_operations_take_half_values_and_give_float32(name, dtype):
    x = weights(4, 4)
    got, _ = inside(lambda model, t: FLOAT32_OPS[name](model.note("half", t @ torch.eye(4))), NAMES[dtype], x)
    assert got.dtype == torch.float32
    low = rounded(x, dtype)
    expected = FLOAT32_OPS[name](low)
    if name in ("rsqrt", "1 / x"):
        expected = {"rsqrt": torch.rsqrt, "1 / x": torch.reciprocal}[name]((low.to(dtype).abs() + 1).float())
    if name == "arccos":
        expected = torch.arccos(low.to(dtype).clamp(-0.5, 0.5).float())
    assert torch.equal(got, expected)


@halves
def test_a_sampling_grid_is_a_product_inside_torch(dtype):
    """Which torch has another way to compute of tensors without memory."""
    theta = weights(2, 2, 3)
    got, _ = inside(lambda model, t: F.affine_grid(t, [2, 1, 4, 4], align_corners=False), NAMES[dtype], theta)
    assert got.dtype == dtype
    expected = F.affine_grid(rounded(theta, dtype), [2, 1, 4, 4], align_corners=False)
    assert torch.equal(got, expected.to(dtype))


@halves
@pytest.mark.parametrize("target", ["classes", "shares"])
def test_cross_entropy_of_half_logits_rounds_the_log_probabilities(target, dtype):
    """As torch's own does inside CUDA's autocast, for which see test_against_autocast.py."""
    x = weights(4, 16, scale=3.0).requires_grad_()
    classes = torch.arange(4)
    wanted = F.one_hot(classes, 16).float()
    given = classes if target == "classes" else wanted
    _, loss = inside(lambda model, t: F.cross_entropy(model.note("half", t @ torch.eye(16)), given), NAMES[dtype], x)
    loss.backward()
    logs = rounded(rounded(x, dtype).log_softmax(1), dtype)
    assert torch.equal(loss, -(logs * wanted).sum() / 4)
    with torch.inference_mode():
        assert torch.equal(inside(lambda model, t: F.cross_entropy(t @ torch.eye(16), given), NAMES[dtype], x)[0], loss)
    assert torch.equal(x.grad, rounded((logs.exp() - wanted) / 4, dtype))
    assert not torch.equal(loss, F.cross_entropy(rounded(x, dtype), classes))
    for wide in (x.detach(), x.detach().double()):
        exact = inside(lambda _, t: F.cross_entropy(t, given), NAMES[dtype], wide)[0]
        assert torch.equal(exact, F.cross_entropy(wide, given))


@halves
@pytest.mark.parametrize(
    "function",
    [F.relu, F.gelu, torch.tanh, torch.mean, torch.abs, F.max_pool1d],
    ids=["relu", "gelu", "tanh", "mean", "abs", "max_pool1d"],
)
def test_other_operations_stay_in_half(function, dtype):
    arguments = (2,) if function is F.max_pool1d else ()
    got, _ = inside(lambda model, t: function(t @ torch.eye(4), *arguments), NAMES[dtype], weights(4, 4))
    assert got.dtype == dtype
    assert torch.equal(got, function(weights(4, 4).to(dtype), *arguments))


@halves
def test_batch_norm_takes_half_and_keeps_its_statistics_in_float32(dtype):
    torch.manual_seed(0)
    model, reference = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    x = weights(16, 4)
    y = emulate(model, NAMES[dtype], x)
    half = rounded(F.linear(*(rounded(t, dtype) for t in (x, reference[0].weight, reference[0].bias))), dtype)
    expected = reference[1](half)
    torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert torch.equal(y, rounded(y, dtype))
    assert model[1].running_var.dtype == torch.float32
    torch.testing.assert_close(model[1].running_var, reference[1].running_var)


@halves
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda h, f: h + f, torch.float32),
        (lambda h, f: torch.cat([h, f]), torch.float32),
        (lambda h, f: h * 2.0, None),
        (lambda h, f: h * torch.tensor(3.0), None),
        (lambda h, f: torch.where(f > 0, h, -1e3), None),
        (lambda h, f: torch.addcmul(h, f, f), torch.float32),
        (lambda h, f: torch.addcmul(h, h, torch.tensor(2.0)), torch.float32),
        (lambda h, f: torch.dot(h[0], f[0]), torch.float32),
        (lambda h, f: torch.zeros(4, 4).scatter_add(0, torch.zeros(4, 4, dtype=torch.long), h), torch.float32),
        (lambda h, f: torch.index_put(f, (torch.tensor([0]),), h[0]), torch.float32),
        (lambda h, f: torch.tensordot(h, f, 1), torch.float32),
        (lambda h, f: torch.dot(h[0], h[1]), None),
    ],
)
def test_promotion_is_torch_s_and_that_of_autocast_s_widest_list(function, expected, dtype):
    got, _ = inside(lambda model, x: function(x @ torch.eye(4), x), NAMES[dtype], weights(4, 4))
    assert got.dtype == (expected or dtype)


@pytest.mark.parametrize("default", ["bfloat16", "float16", "tf32", "float8_e4m3"])
def test_float64_is_left_alone(default):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x = weights(3, 4).double()
    expected = model(x)
    got = emulate(model, default, x)
    assert got.dtype == torch.float64
    assert torch.equal(got, expected)


@halves
def test_in_place_operations_change_their_target(dtype):
    def function(model, x):
        y = x @ torch.eye(4)
        y.exp_()
        y += 1
        y[0] = -2.0
        torch.add(y.detach(), 1, out=(other := torch.empty_like(y)))
        return y, other

    (y, other), _ = inside(function, NAMES[dtype], weights(4, 4))
    expected = weights(4, 4).to(dtype).exp_().add_(1)
    expected[0] = -2
    assert torch.equal(y, expected)
    assert torch.equal(other, expected + 1)


@halves
def test_in_place_operations_change_a_half_tensor_in_a_float32_module(dtype):
    def function(model, x):
        y = model.lin(x)
        y.mul_(0)
        y[:, 0] = 1.0
        y.clamp_(max=0.5)
        return y

    y, _ = inside(function, NAMES[dtype], weights(4, 4), modules={"": "float32"})
    assert y.dtype == dtype
    assert torch.equal(y.float(), torch.tensor([0.5, 0, 0, 0]).expand(4, 4))


@halves
def test_random_numbers_are_those_of_a_float32_run(dtype):
    def function(model, x):
        y = x @ torch.eye(64)
        noise = torch.randn_like(y)
        named = torch.randn(64, 64, dtype=y.dtype)
        filled = torch.empty_like(y).uniform_()
        return noise, named, filled, F.dropout(y, 0.5), torch.rand(3)

    x = weights(64, 64)
    torch.manual_seed(1)
    got, _ = inside(function, NAMES[dtype], x)
    torch.manual_seed(1)
    exact, _ = inside(function, "float32", x)
    for low, wide in zip(got[:2], exact[:2], strict=True):
        assert low.dtype == dtype
        assert torch.equal(low, wide.to(dtype))
    assert torch.equal(got[2], exact[2].to(dtype).where(exact[2].to(dtype) < 1, 0))
    assert torch.equal(got[3] == 0, exact[3] == 0)
    assert torch.equal(got[4], exact[4])


def test_uniform_numbers_stay_below_their_upper_bound_as_on_cuda():
    def function(model, x):
        y = (x @ torch.eye(64)).expand(16, 64, 64)
        return torch.rand_like(y), torch.empty_like(y).uniform_(2, to=4)

    torch.manual_seed(1)
    (unit, wider), _ = inside(function, "bfloat16", weights(64, 64))
    assert (unit.min(), wider.min()) == (0, 2)
    assert unit.max() < 1
    assert wider.max() < 4


@pytest.mark.parametrize("wide", ["float32", "tf32"])
def test_a_wide_module_computes_in_float32_beside_a_half_input(wide):
    def function(model, x):
        y = model.lin(x)
        return y, y * 2, torch.rand_like(y)

    (given, *made), _ = inside(function, "bfloat16", weights(4, 4), modules={"": wide})
    assert given.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in made} == {torch.float32}


def test_what_has_no_half_kernel_here_runs_in_float32_and_is_rounded():
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="not implemented for 'Half'"):
        F.rrelu(weights(4, 4).half(), training=True)
    got, _ = inside(lambda model, x: F.rrelu(x @ torch.eye(4), training=True), "float16", weights(4, 4))
    assert got.dtype == torch.float16
    assert torch.equal(got > 0, weights(4, 4) > 0)

    def function(model, x):
        y = x @ torch.eye(4)
        F.rrelu_(y, 0.5, 0.5, training=True)
        return y

    got, _ = inside(function, "float16", weights(4, 4))
    low = weights(4, 4).half()
    assert torch.equal(got, torch.where(low > 0, low, low / 2))


@pytest.mark.parametrize("function", [torch.linalg.inv, torch.linalg.svd, torch.linalg.det])
def test_linear_algebra_has_no_half_kernel_anywhere(function):
    with pytest.raises(RuntimeError, match=r"not implemented for 'Half'|Low precision dtypes not supported"):
        inside(lambda model, x: function(x @ torch.eye(4)), "float16", weights(4, 4))


# ---------------------------------------------------------------- refused


@halves
@pytest.mark.parametrize("loss", [F.binary_cross_entropy, nn.BCELoss()], ids=["function", "module"])
def test_binary_cross_entropy_is_refused(loss, dtype):
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        inside(lambda model, x: loss(torch.sigmoid(model.lin(x)), torch.ones(4, 4)), NAMES[dtype], weights(4, 4))


def test_binary_cross_entropy_runs_where_the_plan_has_it_in_float32():
    def function(model, x):
        return F.binary_cross_entropy(torch.sigmoid(model.lin(x)), torch.ones(4, 4))

    got, _ = inside(function, "bfloat16", weights(4, 4), ops=[("", "binary_cross_entropy", "float32")])
    assert got.dtype == torch.float32
    assert got.isfinite()
    with_logits, _ = inside(
        lambda model, x: F.binary_cross_entropy_with_logits(model.lin(x), torch.ones(4, 4)), "bfloat16", weights(4, 4)
    )
    assert with_logits.dtype == torch.float32


# ---------------------------------------------------------------- wider and narrower formats


def test_tf32_rounds_factors_and_nothing_else():
    torch.manual_seed(0)
    layer, x, g = nn.Linear(6, 5), weights(8, 6).requires_grad_(), weights(8, 5, seed=1)
    y = emulate(layer, "tf32", x)
    y.backward(g)
    xr, wr, gr = (round_mantissa(t.detach(), 10) for t in (x, layer.weight, g))
    assert torch.equal(y, F.linear(xr, wr, layer.bias))
    assert torch.equal(layer.weight.grad, gr.t() @ xr)
    assert torch.equal(x.grad, gr @ wr)
    torch.testing.assert_close(layer.bias.grad, g.sum(0), rtol=1e-3, atol=1e-3)


def test_a_float32_module_of_a_tf32_plan_shares_its_backward_pass():
    torch.manual_seed(0)
    layer, x, g = nn.Linear(6, 5), weights(8, 6).requires_grad_(), weights(8, 5, seed=1)
    plan = replace(plan_for(layer, "tf32", {"": "float32"}), matmul_precision="high")
    with apply(layer, plan, execution="emulated"):
        y = layer(x)
    y.backward(g)
    xr, wr, gr = (round_mantissa(t.detach(), 10) for t in (x, layer.weight, g))
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.weight.grad, gr.t() @ xr)
    assert torch.equal(x.grad, gr @ wr)


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_float8_linear_layers(name):
    torch.manual_seed(0)
    layer, x, g = nn.Linear(16, 16), weights(32, 16).requires_grad_(), weights(32, 16, seed=1)
    y = emulate(layer, name, x)
    y.backward(g)
    xr, wr = (quantize(rounded(t, torch.bfloat16), name) for t in (x, layer.weight))
    gr = quantize(rounded(g, torch.bfloat16), "float8_e5m2")
    bias = rounded(layer.bias, torch.bfloat16)
    assert torch.equal(y, rounded(rounded(xr @ wr.t(), torch.bfloat16) + bias, torch.bfloat16))
    assert torch.equal(layer.bias.grad, rounded(rounded(g, torch.bfloat16).sum(0), torch.bfloat16))
    assert torch.equal(layer.weight.grad, rounded(gr.t() @ xr, torch.bfloat16))
    assert torch.equal(x.grad, rounded(gr @ wr, torch.bfloat16))


def test_a_reduction_with_a_dtype_of_its_own_gets_its_inputs_as_they_are():
    x = weights(3, 4)
    low, _ = inside(lambda model, x: torch.linalg.vector_norm(x.half(), dtype=torch.float16), "float16", x)
    wide, _ = inside(lambda model, x: x.half().sum(dtype=torch.float32), "float16", x)
    assert torch.equal(low, torch.linalg.vector_norm(x.half(), dtype=torch.float16))
    assert torch.equal(wide, x.half().sum(dtype=torch.float32))


def test_other_operations_of_a_float8_plan_run_in_bfloat16():
    a, b = weights(4, 4), weights(4, 4, seed=1)
    low, _ = inside(lambda model, *args: torch.matmul(*args), "float8_e4m3", a, b)
    assert torch.equal(low, (rounded(a, torch.bfloat16) @ rounded(b, torch.bfloat16)).bfloat16())


# ---------------------------------------------------------------- exceptions of a plan


def test_an_operation_may_run_in_another_format():
    def function(model, x):
        product = model.note("product", x @ x.t())
        return model.note("soft", product.softmax(-1)) @ x

    x = weights(4, 4)

    def product(dtype):
        return rounded(rounded(x, dtype) @ rounded(x, dtype).t(), dtype)

    for ops, dtype in (
        ((), torch.float16),
        ([("", "matmul", "float32")], torch.float32),
        ([("", "matmul", "bfloat16")], torch.bfloat16),
    ):
        model = Inside(function)
        emulate(model, "float16", x, ops=ops)
        assert model.seen["product"].dtype == dtype
        assert torch.equal(model.seen["product"].float(), product(dtype))


def test_a_module_may_run_in_another_format():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), weights(3, 4)
    y = emulate(model, "float16", x, modules={"1": "float32", "2": "bfloat16"})

    def layer(i, value, dtype):
        return F.linear(*(rounded(t, dtype) for t in (value, model[i].weight, model[i].bias)))

    first = rounded(layer(0, x, torch.float16), torch.float16)
    second = layer(1, first, torch.float32)
    assert torch.equal(y, rounded(layer(2, second, torch.bfloat16), torch.bfloat16))


# ---------------------------------------------------------------- the cast cache


class Twice(nn.Module):
    """One weight, used in two products."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(weights(4, 4, seed=5))

    def forward(self, x, z):
        return F.linear(x, self.weight), F.linear(z, self.weight)


@halves
def test_gradients_of_a_shared_weight_are_summed_in_half(dtype):
    model, x, z = Twice(), weights(64, 4), weights(64, 4, seed=1)
    g, k = weights(64, 4, seed=2), weights(64, 4, seed=3)
    first, second = emulate(model, NAMES[dtype], x, z)
    torch.autograd.backward([first, second], [g, k])
    parts = [(rounded(up, dtype).t() @ rounded(values, dtype)).to(dtype) for up, values in ((g, x), (k, z))]
    in_half, in_float32 = (parts[0] + parts[1]).float(), parts[0].float() + parts[1].float()
    assert not torch.equal(in_half, in_float32)
    assert torch.equal(model.weight.grad, in_half)


def test_forward_without_gradients_does_not_affect_cached_casts():
    def function(outer, value):
        with torch.no_grad():
            outer.lin(value)
        return outer.lin(value)

    model = Inside(function)
    emulate(model, "bfloat16", weights(3, 4)).sum().backward()
    assert model.lin.weight.grad is not None


def test_weights_changed_between_calls_are_cast_anew():
    model, x = nn.Linear(4, 4), weights(3, 4)
    before = emulate(model, "bfloat16", x)
    with torch.no_grad():
        model.weight.mul_(2)
    assert not torch.equal(emulate(model, "bfloat16", x), before)


# ---------------------------------------------------------------- what scripts do around it


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant):
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4))
            self.checkpointed = checkpointed

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant) if self.checkpointed else self.inner(x)

    plain, again = nn.Sequential(Block(False), nn.Linear(4, 1)), nn.Sequential(Block(True), nn.Linear(4, 1))
    again.load_state_dict(plain.state_dict())
    x = weights(3, 4).requires_grad_()
    for model in (plain, again):
        with apply(model, plan_for(model, "bfloat16"), execution="emulated"):
            model(x).sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_functional_transforms_run_inside():
    def function(model, x):
        parameters = {name: p.detach() for name, p in model.lin.named_parameters()}

        def loss(values):
            return torch.func.functional_call(model.lin, values, (x,)).square().sum()

        per_sample = torch.func.vmap(lambda row: model.lin(row))(x)
        return torch.func.grad(loss)(parameters)["weight"], per_sample

    (gradient, rows), _ = inside(function, "bfloat16", weights(3, 4))
    assert gradient.shape == (4, 4)
    assert gradient.isfinite().all()
    assert rows.dtype == torch.bfloat16


TF32_PLANS = {
    "tf32": Plan("tf32", {"0": "tf32", "1": "tf32", "2": "tf32"}, matmul_precision="high"),
    "beside tf32": Plan("bfloat16", {"0": "float32", "1": "bfloat16", "2": "tf32"}, matmul_precision="high"),
    "float8": Plan("float8_e4m3", {"0": "float8_e4m3", "1": "bfloat16", "2": "bfloat16"}),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, in its jvp
@pytest.mark.parametrize("name", TF32_PLANS)
def test_tf32_rounding_supports_in_place_changes_and_transforms(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x, parameters = torch.randn(8, 4), dict(model.named_parameters())

    def loss(values, batch):
        return torch.func.functional_call(model, values, (batch,)).square().mean()

    with apply(model, TF32_PLANS[name], execution="emulated"):
        model(x).square().mean().backward()
        found = torch.func.grad(loss)(parameters, x)
        rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
        tangent = torch.func.jvp(lambda values: loss(values, x), (parameters,), (found,))[1]
    for path, gradient in found.items():
        assert torch.equal(gradient, parameters[path].grad)
        assert torch.allclose(rows[path].mean(0), gradient, rtol=0.05, atol=0.02)
    length = sum(float(gradient.detach().square().sum()) for gradient in found.values())
    assert float(tangent.detach()) == pytest.approx(length, rel=0.05)


def test_a_forward_without_gradients_beside_tf32_is_computed_once():
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        expected = model(x)
    plan = Plan("tf32", {"": "float32"}, matmul_precision="high")
    with apply(model, plan, execution="emulated"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        assert torch.equal(model(x), expected)
    assert counted.get_total_flops() == plain.get_total_flops()


def test_outputs_are_float32_in_any_container():
    def function(model, x):
        y = model.lin(x)
        return OrderedDict(one=y, many=[y, (y, None)], pair=Pair(y, 3), best=torch.max(y, 0))

    output = emulate(Inside(function), "float16", weights(4, 4))
    assert isinstance(output, OrderedDict)
    assert isinstance(output["pair"], Pair)
    values = [output["one"], output["many"][0], output["many"][1][0], output["pair"].a, output["best"].values]
    assert {v.dtype for v in values} == {torch.float32}
    assert output["best"].indices.dtype == torch.int64


@halves
def test_an_output_that_overflows_is_infinite(dtype):
    y = emulate(nn.Linear(1, 1, bias=False), NAMES[dtype], torch.tensor([[1e30]]))
    assert y.isinf().item() == (dtype == torch.float16)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3"])
@pytest.mark.parametrize("layer", [nn.Conv1d(3, 5, 3), nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3)])
@pytest.mark.parametrize("batched", [True, False])
def test_a_convolution_is_rounded_before_its_bias_is_added(name, layer, batched):
    """cuDNN returns the products in half and torch adds the bias: measured on an H100, the two roundings are there."""
    dtype = torch.float16 if name == "float16" else torch.bfloat16
    spatial = 2 if "2d" in type(layer).__name__ else 1
    x = weights(*([4] if batched else []), 3, *[7] * spatial)
    bare = copy.deepcopy(layer)
    bare.weight.data, bare.bias = layer.weight.data.to(dtype).float(), None
    products = bare(x.to(dtype).float()).to(dtype)
    expected = products + layer.bias.to(dtype).reshape(-1, *[1] * spatial)
    assert torch.equal(emulate(layer, name, x), expected.float())


# ---------------------------------------------------------------- written in place


def scattered(model, x):
    return torch.zeros(8, 4).index_add_(0, torch.arange(8), model.lin(x))


@halves
def test_writing_half_values_into_a_float32_tensor_raises_as_on_a_gpu(dtype):
    with pytest.raises(RuntimeError, match="same scalar type"):
        inside(scattered, NAMES[dtype], weights(8, 4))


@halves
def test_a_write_in_float32_takes_what_it_reads_in_the_dtype_it_writes(dtype):
    torch.manual_seed(0)
    result, _ = inside(scattered, NAMES[dtype], weights(8, 4), ops=[("", "index_add", "float32")])
    torch.manual_seed(0)
    expected, _ = inside(lambda model, x: model.lin(x), NAMES[dtype], weights(8, 4))
    assert result.dtype == torch.float32
    assert torch.equal(result, expected.float())


def test_a_float32_scope_writes_into_half_tensors_in_half():
    def function(model, x, total):
        return total.index_add_(0, torch.arange(8), model.lin(x))

    result, _ = inside(function, "float32", weights(8, 4), torch.zeros(8, 4, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16


# ---------------------------------------------------------------- operations of other libraries


def test_autocast_kernel_of_a_library_is_used():
    """As torchvision's roi_align and nms: half features and float32 boxes raise without it."""

    def pool(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        if x.dtype != boxes.dtype:
            raise RuntimeError("input should have the same type as rois")
        return x + boxes

    class Detector(nn.Module):
        def forward(self, pool, x, boxes):
            half = x @ x
            assert half.dtype == torch.bfloat16
            return pool(half, boxes)

    plain = torch.library.custom_op("precaudit_test::pool", pool, mutates_args=())
    cast = torch.library.custom_op("precaudit_test::cast_pool", pool, mutates_args=())
    cast.register_autocast("cpu", torch.float32)
    x, boxes = weights(3, 3), weights(3, 3, seed=1)
    with pytest.raises(RuntimeError, match="same type"):
        emulate(Detector(), "bfloat16", plain._opoverload, x, boxes)
    half = rounded(rounded(x, torch.bfloat16) @ rounded(x, torch.bfloat16), torch.bfloat16)
    assert torch.equal(emulate(Detector(), "bfloat16", torch.ops.precaudit_test.cast_pool, x, boxes), half + boxes)
    assert torch.equal(emulate(Detector(), "bfloat16", cast._opoverload, x, boxes), half + boxes)


def seeded(function):
    def run(*args):
        torch.manual_seed(0)
        return function(*args)

    return run


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("function", "input"),
    [
        (lambda x: F.grid_sample(x, x.detach().movedim(1, 3), align_corners=False), weights(1, 2, 99, 99).clamp(-1, 1)),
        (lambda x: F.fold(x, (12, 12), 5, padding=2), weights(1, 50, 144)),
        (lambda x: F.unfold(x, 7, padding=3), weights(1, 2, 12, 12)),
        (lambda x: F.avg_pool1d(x, 65, 1), weights(1, 2, 200)),
        (lambda x: F.adaptive_avg_pool3d(x, 2), weights(2, 16, 16, 16) + 1),
        (F.instance_norm, weights(2, 4, 20, 20) + 20),
        (lambda x: F.dropout(x, 0.1), weights(40, 40) + 20),
        (lambda x: torch.native_dropout(x, 0.1, True)[0], weights(40, 40) + 20),
    ],
    ids="grid_sample fold unfold avg_pool1d adaptive_avg_pool3d instance_norm dropout native_dropout".split(),
)
def test_kernels_that_compute_in_float32_on_cuda_round_once(function, input, dtype):
    """The CPU's kernels for half sum in half, that of grid_sample computes its coordinates in it, and dropout takes its
    factor of 1 / 0.9 as 1.109."""
    function = seeded(function)
    half = input.to(getattr(torch, dtype)).requires_grad_()
    wide = half.detach().float().requires_grad_()
    expected = function(wide)
    result, _ = inside(lambda model, x: function(x), dtype, half)
    assert torch.equal(result, expected.to(half.dtype))
    upstream = weights(*result.shape).to(half.dtype)
    (gradient,) = torch.autograd.grad(result, half, upstream)
    (exact,) = torch.autograd.grad(expected, wide, upstream.float())
    assert torch.equal(gradient, exact.to(half.dtype))


@pytest.mark.parametrize("off", [{"training": False}, {"p": 0.0}], ids=["eval", "nothing to drop"])
def test_dropout_that_drops_nothing_returns_its_input_itself(off):
    """As torch does: what is written into the result is written into the input."""

    def computed(model, x):
        half = model.lin(x)
        return F.dropout(half, **off) is half

    model = Inside(lambda model, x: model.note("same", computed(model, x)) or x)
    emulate(model, "bfloat16", weights(2, 4))
    assert model.seen["same"]


@halves
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 0.111,
        lambda x: 0.111 + x,
        lambda x: x + 2049,
        lambda x: x - 0.0111,
        lambda x: 1e5 - (x * 0 + 40960),
        lambda x: (x * 1).add_(0.111),
        lambda x: torch.sub(x, 0.111, alpha=3),
    ],
    ids=["add", "radd", "integer", "sub", "beyond float16", "in place", "alpha"],
)
def test_a_constant_is_added_unrounded(function, dtype):
    """The half kernels of CUDA add in float32, and have the constant in it; the CPU's round it first."""
    half = weights(40, 40).to(dtype)
    assert torch.equal(inside(lambda model, x: function(x), NAMES[dtype], half)[0], function(half.float()).to(dtype))
