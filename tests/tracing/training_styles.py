"""Training in the styles that scripts have: each function trains a little and returns every number it made."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fit(model, loss_of, steps=3, optimizer=Adam, lr=0.01):
    """Losses, last gradients and weights of a plain loop."""
    optimizer = optimizer(model.parameters(), lr=lr)
    made = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        made.append(loss.detach().clone())
    made += [p.grad.clone().to_dense() for p in model.parameters() if p.grad is not None]
    return made + [t.detach().clone() for t in model.state_dict().values()]


class Wrapping(nn.Module):
    """A module with the given children whose forward is a function."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *inputs, **options):
        return self.function(self, *inputs, **options)


def plain_net():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return fit(model, lambda m, i: F.cross_entropy(m(numbers(i, 5, 6)), torch.tensor([0, 1, 2, 0, 1])))


def inplace():
    def forward(self, x):
        h = self.a(x)
        h.mul_(2)
        h += x
        h[:, 0] = 1.0
        return self.b(self.drop(h).relu_())

    model = Wrapping(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 1), drop=nn.Dropout(0.3, inplace=True))
    return fit(model, lambda m, i: m(numbers(i, 5, 6)).square().mean())


def lstm():
    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
        out, (h, c) = self.rnn(packed)
        return self.head(h[-1]) + c.mean() + out.data.sum()

    model = Wrapping(forward, rnn=nn.LSTM(3, 5, 2, batch_first=True, dropout=0.2), head=nn.Linear(5, 1))
    return fit(model, lambda m, i: m(numbers(i, 2, 4, 3)).square().mean())


def checkpointed(reentrant):
    def forward(self, x):
        h = checkpoint(self.a, x, use_reentrant=reentrant)
        h = checkpoint(lambda t: F.gelu(self.b(t)) * 2 + h.detach(), h, use_reentrant=reentrant)
        return self.c(h)

    model = Wrapping(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 1))
    return fit(model, lambda m, i: m(numbers(i, 5, 6).requires_grad_()).square().mean())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


def custom_function():
    model = Wrapping(lambda self, x: self.b(Cube.apply(self.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 1))
    return fit(model, lambda m, i: m(numbers(i, 5, 4)).square().mean())


def dict_outputs():
    def forward(self, batch):
        h = self.body(batch["x"])
        out = {"logits": self.head(h), "hidden": (h, [h * 2])}
        if "y" in batch:
            out["loss"] = F.mse_loss(out["logits"], batch["y"])
        return out

    model = Wrapping(forward, body=nn.Linear(4, 4), head=nn.Linear(4, 1))
    return fit(model, lambda m, i: m({"x": numbers(i, 5, 4), "y": numbers(9, 5, 1)})["loss"])


def shared_module():
    def forward(self, x):
        for _ in range(12):
            x = torch.tanh(self.cell(x)) + self.cell(x)
        return x

    return fit(Wrapping(forward, cell=nn.Linear(4, 4)), lambda m, i: m(numbers(i, 5, 4)).square().mean())


def tied_weights():
    model = Wrapping(
        lambda self, x: self.out(self.table(x)), table=nn.Embedding(11, 4), out=nn.Linear(4, 11, bias=False)
    )
    model.out.weight = model.table.weight
    tokens = torch.tensor([[1, 2, 3], [4, 5, 1]])
    return fit(model, lambda m, i: F.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten()))


def conv_and_batch_norm():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 2),
    )
    return fit(model, lambda m, i: m(numbers(i, 4, 1, 6, 6)).square().mean(), optimizer=SGD)


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x):
        q = self.q(x).view(2, 5, 2, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
        weights = (q @ q.transpose(-1, -2)).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).softmax(-1)
        return self.layer(y) + (weights @ q).transpose(1, 2).reshape(2, 5, 8)

    return fit(Wrapping(forward, q=nn.Linear(8, 8), layer=layer), lambda m, i: m(numbers(i, 2, 5, 8)).square().mean())


def sparse_embedding():
    model = Wrapping(
        lambda self, x: self.head(self.bag(x)), bag=nn.EmbeddingBag(20, 4, sparse=True), head=nn.Linear(4, 1)
    )
    tokens = torch.tensor([[1, 2], [3, 1]])
    return fit(model, lambda m, i: m(tokens + i).square().mean(), optimizer=SGD)


def functional():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = []
    for step in range(3):

        def loss(values, step=step):
            return torch.func.functional_call(model, values, (numbers(step, 5, 4),)).square().mean()

        gradients, value = torch.func.grad_and_value(loss)(weights)
        per_sample = torch.func.vmap(lambda row, w=weights: torch.func.functional_call(model, w, (row,)))(
            numbers(7, 3, 4)
        )
        weights = {name: w - 0.1 * gradients[name] for name, w in weights.items()}
        made += [value.detach(), per_sample.detach(), *gradients.values()]
    return [*made, *weights.values()]


def second_order():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 1))

    def loss(m, i):
        x = numbers(i, 5, 4).requires_grad_()
        out = m(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.square().mean() + slope.square().mean()

    return fit(model, loss)


def closures():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    made = []

    def closure():
        optimizer.zero_grad()
        loss = model(numbers(0, 5, 4)).square().mean()
        loss.backward()
        made.append(loss.detach())
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return made + [p.detach().clone() for p in model.parameters()]


def accumulation_clipping_and_evaluation():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    average = copy.deepcopy(model)
    optimizer = Adam(model.parameters(), lr=0.01)
    made = []
    for step in range(6):
        loss = model(numbers(step, 5, 4)).square().mean()
        loss.backward()
        if step % 2:
            made.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(p, 0.1)
                made.append(average.eval()(numbers(9, 2, 4)))
    return made + [p.detach().clone() for p in (*model.parameters(), *average.parameters())]


def frozen_base():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 1))
    return fit(model, lambda m, i: m(numbers(i, 5, 4)).square().mean())


def quantized_and_counting():
    """A frozen weight in int8 and a counter, both of them parameters."""

    def forward(self, x):
        self.calls += 1
        return self.head(x @ (self.packed.to(x.dtype) * 0.01))

    model = Wrapping(forward, head=nn.Linear(4, 1))
    model.packed = nn.Parameter(torch.randint(-127, 128, (6, 4), dtype=torch.int8), requires_grad=False)
    model.calls = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)
    return fit(model, lambda m, i: m(numbers(i, 5, 6)).square().mean())


def float64_complex_and_random():
    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x))
        noise = torch.randn_like(x) * torch.rand(())
        return self.b(torch.fft.irfft(spectrum * 2, n=4) + noise)

    model = Wrapping(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 1)).double()
    return fit(model, lambda m, i: m(numbers(i, 5, 4).double()).square().mean())


def two_models():
    generator, critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 1))
    first, second = SGD(generator.parameters(), lr=0.1), SGD(critic.parameters(), lr=0.1)
    made = []
    for step in range(3):
        fake = generator(numbers(step, 5, 2))
        second.zero_grad()
        loss = critic(fake.detach()).mean() - critic(numbers(step + 50, 5, 4)).mean()
        loss.backward()
        second.step()
        first.zero_grad()
        adversarial = -critic(fake).mean()
        adversarial.backward()
        first.step()
        made += [loss.detach(), adversarial.detach()]
    return made + [p.detach().clone() for p in (*generator.parameters(), *critic.parameters())]


def handmade_layers():
    def forward(self, x):
        x = self.a(x)
        x = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        return (x.to(torch.float32) @ self.b.weight.t()).type_as(x).sum(-1)

    model = Wrapping(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4, bias=False))
    return fit(model, lambda m, i: m(numbers(i, 5, 4)).square().mean())


class Fork(torch.autograd.Function):
    """Two results, and no gradient for the second input."""

    @staticmethod
    def forward(ctx, x, y):
        return x * 2, y * 3

    @staticmethod
    def backward(ctx, of_double, of_triple):
        return of_double * 2, None


def results_without_a_gradient():
    """Hooks on what nobody uses are called with None."""

    def forward(self, x):
        q, _ = torch.linalg.qr(self.a(x))
        double, _ = Fork.apply(q, self.b.weight)
        return double.sum() + self.b(x).sum()

    model = Wrapping(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    return fit(model, lambda m, i: m(numbers(i, 4, 4)))


STYLES = {
    "plain": plain_net,
    "in place": inplace,
    "lstm": lstm,
    "reentrant checkpoint": lambda: checkpointed(True),
    "checkpoint": lambda: checkpointed(False),
    "custom function": custom_function,
    "quantized and counting": quantized_and_counting,
    "dict outputs": dict_outputs,
    "shared module": shared_module,
    "tied weights": tied_weights,
    "conv, batch norm": conv_and_batch_norm,
    "attention": attention,
    "sparse embedding": sparse_embedding,
    "functional": functional,
    "second order": second_order,
    "closures": closures,
    "accumulation": accumulation_clipping_and_evaluation,
    "frozen base": frozen_base,
    "float64, complex, random": float64_complex_and_random,
    "two models": two_models,
    "handmade layers": handmade_layers,
    "results without a gradient": results_without_a_gradient,
}
