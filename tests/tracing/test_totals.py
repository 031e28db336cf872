"""What is counted: every value once, where it was made, in training forwards only."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from traced import tracing
from training_styles import STYLES, Wrapping, numbers

BATCH = 5


def train(model, loss_of, steps=2, optimizer=torch.optim.SGD):
    optimizer = optimizer(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def seen(layer, role, name=None):
    record = layer.tensor(role, name)
    return record.stats.numel if record else 0


@pytest.mark.parametrize("style", STYLES)
def test_counts_add_up_to_numel(style):
    torch.manual_seed(0)
    with tracing(shadowed=lambda step: step == 0, formats=("bfloat16",), per_step=True) as traced:
        STYLES[style]()
        trace = traced.trace
    records = [t for each in (*trace.layers, *trace.ops) for t in each.tensors]
    assert records
    for record in records:
        stats = record.stats
        assert stats.numel == stats.exponents.total + stats.zeros + stats.nonfinite > 0


def test_numel_is_calls_times_size():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).square().mean(), steps=3)
    for fqn, size in (("0", 6), ("1", 6), ("2", 1)):
        layer = traced.layer(fqn)
        assert layer.calls == 3
        assert seen(layer, "activation") == seen(layer, "activation_grad") == 3 * BATCH * size
    layer = traced.layer("0")
    for role in ("weight", "weight_grad", "update"):
        assert seen(layer, role, "weight") == 3 * 24
        assert seen(layer, role, "bias") == 3 * 6
    assert layer.parameters == 30
    assert traced.op("0", "linear").calls == 3
    assert traced.trace.audited_steps == 3


def test_optimizer_states():
    model = nn.Linear(4, 2)
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).square().mean(), optimizer=torch.optim.Adam)
    states = {t.name: t.stats.numel for t in traced.layer("").tensors if t.role == "optimizer_state"}
    assert states == {"weight.exp_avg": 16, "weight.exp_avg_sq": 16, "bias.exp_avg": 4, "bias.exp_avg_sq": 4}


def test_values_are_those_of_plain_hooks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    outputs, gradients = [], []

    def keep(module, args, out):
        outputs.append(out.detach())
        out.register_hook(gradients.append)

    model[0].register_forward_hook(keep)
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).square().mean())
    for role, values in (("activation", torch.cat(outputs)), ("activation_grad", torch.cat(gradients))):
        stats = traced.layer("0").tensor(role).stats
        assert stats.amax == values.abs().max().item()
        assert stats.sum_squares == pytest.approx(values.double().square().sum().item(), rel=1e-6)
        exponents = values[values != 0].abs().log2().floor()
        assert dict(stats.exponents.items()) == {
            int(e): int(n) for e, n in zip(*exponents.unique(return_counts=True), strict=True)
        }


def test_a_shared_module_counts_once_a_call():
    def forward(self, x):
        return self.head(self.cell(self.cell(self.cell(x))))

    model = Wrapping(forward, cell=nn.Linear(4, 4), head=nn.Linear(4, 1))
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).sum(), steps=2)
    assert traced.layer("cell").calls == 6
    assert seen(traced.layer("cell"), "activation") == 6 * BATCH * 4
    assert seen(traced.layer("cell"), "activation_grad") == 6 * BATCH * 4
    assert seen(traced.layer("cell"), "weight_grad", "weight") == 2 * 16
    assert traced.op("cell", "linear").calls == 6


def test_a_module_that_hands_on_a_shared_child_s_result_counts_its_own_only():
    def forward(self, x):
        return self.cell(self.cell(x) * 2)

    model = Wrapping(
        lambda self, x: self.head(self.body(x)), body=Wrapping(forward, cell=nn.Linear(4, 4)), head=nn.Linear(4, 1)
    )
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).sum(), steps=2)
    assert seen(traced.layer("body"), "activation") == 2 * BATCH * 4
    assert seen(traced.layer("body"), "activation_grad") == 2 * BATCH * 4
    assert seen(traced.layer("body.cell"), "activation") == 4 * BATCH * 4


def test_modules_that_return_their_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Dropout(0.0), nn.Linear(4, 1))
    with tracing() as traced:
        train(model, lambda m, i: m[3](m[:3](m[0](numbers(i, BATCH, 4)))).sum(), steps=2)
    for fqn, calls in (("0", 4), ("1", 2), ("2", 2)):
        assert traced.layer(fqn).calls == calls
        assert seen(traced.layer(fqn), "activation") == calls * BATCH * 4


def test_containers_that_only_pass_on_are_no_layers():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 1))
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).sum())
    assert [layer.fqn for layer in traced.trace.layers] == ["0.0", "1"]
    assert traced.trace.leaves == ("0.0", "1")


def test_many_calls_of_one_operation_keep_a_bounded_number_of_slots():
    def forward(self, x):
        for _ in range(50):
            x = torch.tanh(x)
        return self.lin(x)

    model = Wrapping(forward, lin=nn.Linear(4, 1))
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4).requires_grad_()).sum(), steps=2)
        assert len(traced.tracer.ops) < 12
    assert traced.op("", "tanh").calls == 100
    assert traced.op("", "tanh").tensor("activation").stats.numel == 100 * BATCH * 4
    assert traced.op("", "tanh").tensor("activation_grad").stats.numel == 100 * BATCH * 4


def test_evaluation_is_not_counted():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def loss(m, i):
        with torch.no_grad():
            m.eval()(numbers(i, 50, 4))
        with torch.inference_mode():
            m(numbers(i, 50, 4))
        return m.train()(numbers(i, BATCH, 4)).sum()

    with tracing() as traced:
        train(model, loss, steps=2)
    assert traced.layer("0").calls == 2
    assert seen(traced.layer("0"), "activation") == 2 * BATCH * 4


def test_micro_batches_are_all_counted():
    model = nn.Linear(4, 2)
    with tracing() as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            for part in range(3):
                model(numbers(3 * step + part, BATCH, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    layer = traced.layer("")
    assert layer.calls == 6
    assert seen(layer, "activation") == seen(layer, "activation_grad") == 6 * BATCH * 2
    assert seen(layer, "weight_grad", "weight") == 6 * 8
    assert seen(layer, "update", "weight") == 2 * 8


def test_only_audited_steps_are_counted():
    model = nn.Linear(4, 2)
    with tracing(audited=lambda step: step in (0, 3), per_step=True) as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).sum(), steps=5)
    layer = traced.layer("")
    assert traced.trace.audited_steps == 2
    assert layer.calls == 2
    for role, size in (("activation", BATCH * 2), ("weight", 8), ("weight_grad", 8), ("update", 8)):
        assert seen(layer, role) == 2 * size
    assert [step for step, _ in traced.trace.maxima] == [0, 3]


CHECKPOINTS = {
    "module": lambda self, x, reentrant: self.c(checkpoint(self.a, x, use_reentrant=reentrant)),
    "function": lambda self, x, reentrant: self.c(
        checkpoint(lambda t: torch.tanh(self.a(t) * 2), x, use_reentrant=reentrant)
    ),
    "own operations": lambda self, x, reentrant: self.c(
        checkpoint(lambda t: torch.sigmoid(t.exp() * 2), self.a(x), use_reentrant=reentrant)
    ),
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_recomputed_forward_is_counted_once(kind, reentrant):
    def model():
        return Wrapping(lambda self, x: CHECKPOINTS[kind](self, x, reentrant), a=nn.Linear(4, 4), c=nn.Linear(4, 1))

    def counts(checkpointed):
        function = CHECKPOINTS[kind]

        def plainly(self, x):
            with pytest.MonkeyPatch.context() as patch:
                if not checkpointed:
                    patch.setitem(globals(), "checkpoint", lambda f, *args, use_reentrant: f(*args))
                return function(self, x, reentrant)

        net = model()
        net.function = plainly
        with tracing() as traced:
            train(net, lambda m, i: m(numbers(i, BATCH, 4).requires_grad_()).sum(), steps=2)
        return {
            (each.fqn, op): [(t.role, t.stats.numel) for t in each.tensors]
            for each, op in [*((e, "") for e in traced.trace.layers), *((e, e.op) for e in traced.trace.ops)]
        }

    assert counts(True) == counts(False)


def test_adjoint_function_counts_every_evaluation():
    """Forwards under no_grad, repeated with gradients inside the backward pass, as neural ODEs do."""

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return cell(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                for _ in range(3):
                    again = x.detach().requires_grad_()
                    grads = torch.autograd.grad(cell(again), (again, cell.weight), gradient)
            return grads

    cell = nn.Linear(4, 4, bias=False)
    with tracing() as traced:
        optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
        Adjoint.apply(numbers(0, BATCH, 4).requires_grad_(), cell.weight).sum().backward()
        optimizer.step()
    assert traced.layer("").calls == 3


def test_tied_weights_are_counted_once_at_the_first_module():
    model = Wrapping(lambda self, x: self.out(self.table(x)), table=nn.Embedding(7, 4), out=nn.Linear(4, 7))
    model.out.weight = model.table.weight
    with tracing() as traced:
        train(model, lambda m, i: m(torch.tensor([1, 2])).square().sum())
    assert traced.layer("table").parameters == 28
    assert traced.layer("out").parameters == 7
    assert traced.layer("out").tied_to == "table"
    assert seen(traced.layer("table"), "weight_grad", "weight") == 2 * 28
    assert traced.layer("out").tensor("weight_grad", "weight") is None


def test_sparse_gradients_count_stored_values():
    model = nn.Embedding(50, 4, sparse=True)
    with tracing() as traced:
        train(model, lambda m, i: m(torch.tensor([1, 2, 2])).sum())
    stats = traced.layer("").tensor("weight_grad", "weight").stats
    assert stats.numel == 2 * 3 * 4
    assert stats.zeros == 0


def test_frozen_parameters_have_weights_and_no_gradients():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    with tracing() as traced:
        train(model, lambda m, i: m(numbers(i, BATCH, 4)).sum())
    assert seen(traced.layer("0"), "weight", "weight") == 2 * 16
    assert seen(traced.layer("0"), "weight_grad") == 0
    assert seen(traced.layer("0"), "activation_grad") == 0


def test_parameters_unfrozen_later_are_seen():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))

    def loss(m, i):
        m[0].requires_grad_(i > 0)
        return m(numbers(i, BATCH, 4)).sum()

    with tracing() as traced:
        train(model, loss, steps=3)
    assert seen(traced.layer("0"), "weight_grad", "weight") == 2 * 16


@pytest.mark.parametrize("second", ["trained", "frozen", "detached"])
def test_several_trained_models_are_prefixed(second):
    """What gradients flow through has its place in the plan too, as the features of a perceptual loss have."""
    with tracing() as traced:
        model, other = nn.Sequential(nn.Linear(4, 1)), nn.Sequential(nn.Linear(4, 1))
        optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
        other.requires_grad_(second == "trained")
        target = other(numbers(1, BATCH, 4))
        (model(numbers(0, BATCH, 4)) - (target.detach() if second == "detached" else target)).square().sum().backward()
        optimizer.step()
    trace = traced.trace
    assert {layer.fqn for layer in trace.layers if layer.trained} == {"model.0", "other.0"}
    assert set(trace.leaves) == {"model.0", "other.0"}
    assert set(trace.models) == {"model", "other"}


def test_a_teacher_without_gradients_leaves_the_student_its_own_names():
    with tracing() as traced:
        student, teacher = nn.Sequential(nn.Linear(4, 1)), nn.Sequential(nn.Linear(4, 1))
        with torch.no_grad():
            target = teacher(numbers(0, BATCH, 4))
        (student(numbers(0, BATCH, 4)) - target).square().sum().backward()
    assert [layer.fqn for layer in traced.trace.layers] == ["0"]
    assert traced.trace.models == ("student",)


def test_frozen_part_of_a_training_forward_is_counted():
    """A backbone that stays as it is; evaluation between the steps does not."""

    def forward(self, x):
        with torch.no_grad():
            h = self.frozen(x) * 2
        return self.head(h)

    def model():
        return Wrapping(forward, frozen=nn.Linear(4, 4), head=nn.Linear(4, 1))

    with tracing() as traced:
        net, other = model(), model()
        train(net, lambda m, i: m(numbers(i, BATCH, 4)).sum(), steps=2)
        with torch.no_grad():
            net(numbers(0, BATCH, 4))
            other(numbers(0, BATCH, 4))
    assert traced.trace.models == ("net",)
    assert [traced.layer(fqn).calls for fqn in ("frozen", "head")] == [2, 2]
    assert traced.op("", "mul").calls == 2
    assert seen(traced.layer("frozen"), "activation") == 2 * 4 * BATCH
    assert traced.layer("frozen").tensor("activation_grad") is None


def test_parameters_of_modules_that_never_run_count_where_they_are_used():
    """Lists of parameters, the projection that attention reads the weights of, and a head that nothing uses."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(4, 4)])
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            x = x @ self.weights[0]
            return self.attention(x, x, x)[0]

    with tracing() as traced:
        train(Net(), lambda m, i: m(numbers(i, 1, BATCH, 4)).sum(), steps=3)
    for role in ("weight", "weight_grad", "update"):
        assert seen(traced.layer(""), role, "weights.0") == 3 * 16
        assert seen(traced.layer("attention"), role, "out_proj.weight") == 3 * 16
    assert traced.layer("").tensor("weight", "unused.weight") is None


def test_modules_called_during_construction_are_no_models():
    """A weight norm does, when its weight is looked at."""

    @torch.no_grad()
    def initialize(module):
        module.weight.norm()

    def build():
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        initialize(layer)
        return nn.Sequential(layer, nn.Linear(4, 1))

    with tracing() as traced:
        net = build()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(numbers(0, BATCH, 4)).sum().backward()
        optimizer.step()
    assert traced.trace.models == ("net",)
    weights = [tensor for tensor in traced.layer("0.parametrizations.weight").tensors if tensor.role == "weight_grad"]
    assert [tensor.name for tensor in weights] == ["original0", "original1"]


def test_losses_are_untrained_layers():
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    with tracing() as traced:
        train(model, lambda m, i: criterion(m(numbers(i, BATCH, 4)), torch.tensor([0, 1, 2, 0, 1])))
    assert not traced.layer("criterion").trained
    assert traced.layer("").trained


def test_maxima_are_of_what_is_half_in_the_backward_pass():
    """The gradient of a linear layer's result counts, that of a loss's own difference does not."""
    model, target = nn.Linear(1, 1, bias=False), torch.zeros(1, 1)
    with tracing(per_step=True) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for scale in (2.0**-10, 2.0**3):
            optimizer.zero_grad()
            (model(torch.ones(1, 1)) - target).sum().mul(scale).backward()
            optimizer.step()
    assert traced.trace.maxima == ((0, -10.0), (1, 3.0))


def test_gradient_stopped_by_relu_is_not_in_the_maxima():
    """Behind a row of zeros that is divided by an eps, gradients are huge, and none of them gets through."""

    def shares(self, x):
        score = self.lin(x).relu()
        return score / (score.sum(-1, keepdim=True) + 1e-8)

    model = Wrapping(shares, lin=nn.Linear(1, 2, bias=False))
    nn.init.constant_(model.lin.weight, 1.0)
    with tracing(per_step=True) as traced:
        train(model, lambda m, i: m(torch.tensor([[1.0], [-1.0]]))[:, 0].sum(), steps=1)
    assert traced.op("", "relu").tensor("activation_grad").stats.amax > 1e7
    assert traced.trace.maxima == ((0, -2.0),)


def test_number_of_maxima_is_bounded():
    model, steps = nn.Linear(1, 1, bias=False), 3000
    with tracing(per_step=True) as traced:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 1)).sum().mul(2.0**10 if step == 1234 else 2.0 ** -(step % 8)).backward()
            optimizer.step()
            assert len(traced.tracer._peaks) + len(traced.tracer._maxima) < 1500
    assert max(traced.trace.maxima, key=lambda item: item[1]) == (1234, 10.0)
    assert [step for step, _ in traced.trace.maxima] == sorted(step for step, _ in traced.trace.maxima)
    assert traced.trace.maxima[-1][0] >= steps - 8


def test_what_ran_before_it_became_part_of_the_model_is_told_under_its_name_there():
    """As `torch.nn.utils.parametrizations` do: a parametrization runs while it is registered."""

    def train():
        part = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        part(torch.ones(2, 4))
        model = nn.Sequential(part, nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    with tracing(audited=lambda step: True) as traced:
        train()
        trace = traced.trace
    assert trace.models == ("model",)
    assert {layer.fqn: layer.calls for layer in trace.layers} == {"0.0": 2, "0.1": 2, "1": 1}
    assert {(op.fqn, op.op): op.calls for op in trace.ops} == {
        ("0.0", "linear"): 2,
        ("0.1", "tanh"): 2,
        ("1", "linear"): 1,
    }
    weight = next(tensor for tensor in traced.layer("0.0").tensors if tensor.role == "weight_grad")
    assert (weight.name, weight.stats.numel) == ("weight", 16)


def test_what_computes_without_gradients_between_its_children_has_a_place_in_the_plan():
    class Augmentation(nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x * 1.5)

    net = nn.Sequential(Augmentation(nn.Identity()), nn.Sequential(nn.Linear(4, 1)))
    with tracing() as traced:
        train(net, lambda model, step: model(numbers(step, BATCH, 4)).square().sum(), steps=1)
    assert set(traced.trace.leaves) == {"0", "0.0", "1.0"}


@pytest.mark.parametrize("frozen", [False, True])
def test_modules_that_never_ran_in_training_are_listed(frozen):
    """A head for sampling, run between the steps, and one for nothing; attention's `out_proj` works without running,
    a table of parameters and an activation have nothing to run; a layer may be left out of the steps that are looked
    at."""

    def forward(self, x):
        h, _ = self.mix(x, x, x)
        self.calls += 1
        return self.head(h + (self.rare(h) if self.calls % 2 == 0 else self.table[0]))

    net = Wrapping(
        forward,
        mix=nn.MultiheadAttention(4, 2),
        head=nn.Linear(4, 1),
        rare=nn.Linear(4, 4),
        sampler=nn.Linear(4, 4),
        never=nn.Linear(4, 4),
        act=nn.ReLU(),
        table=nn.ParameterList([nn.Parameter(torch.zeros(4), requires_grad=False)]),
    )
    net.calls = 0
    net.mix.requires_grad_(not frozen)
    with tracing(audited=lambda step: step == 0) as traced:
        train(net, lambda model, step: model(numbers(step, BATCH, 4)).square().sum(), steps=2)
        with torch.no_grad():
            net.sampler(numbers(0, BATCH, 4))
    assert set(traced.trace.unseen) == {"sampler", "never"}
    assert "mix.out_proj" in traced.trace.leaves
