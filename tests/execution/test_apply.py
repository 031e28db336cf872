"""`precaudit.apply` on somebody's model: what it changes, what it leaves behind, and how it refuses."""

import copy
import gc
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from emulation_models import Inside, emulate, plan_for, weights
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import _get_autocast_kwargs, checkpoint

import precaudit
from precaudit.errors import PrecauditError
from precaudit.execution import apply as applying
from precaudit.execution import native
from precaudit.execution.apply import apply
from precaudit.execution.emulated import EmulatedMode
from precaudit.execution.native import NativePrecision
from precaudit.model import OpFormat, Plan
from precaudit.reporting.serialize import write_json


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def modes():
    return torch.overrides._get_current_function_mode_stack()


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


X = weights(3, 4)


# ---------------------------------------------------------------- in force, and gone


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_plan_is_in_force_until_its_handle_is_removed(execution):
    model = small()
    before = model(X)
    handle = precaudit.apply(model, plan_for(model, "bfloat16"), execution=execution)
    under = model(X)
    handle.remove()
    handle.remove()
    assert under.dtype == torch.float32
    assert not torch.equal(under, before)
    torch.testing.assert_close(under, before, rtol=0.05, atol=0.01)
    assert torch.equal(model(X), before)
    assert hooks(model) == []


def test_a_with_block_ends_it_also_when_it_raises():
    model = small()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), apply(model, plan_for(model, "float16")):
        model(X.t())
    assert hooks(model) == []
    assert modes() == []


def test_outside_the_model_nothing_is_rounded():
    model = small()
    with apply(model, plan_for(model, "bfloat16"), execution="emulated"):
        y = model(X)
        assert modes() == []
        assert (y @ y.t()).dtype == torch.float32


def test_weights_and_gradients_stay_float32():
    model = small()
    with apply(model, plan_for(model, "bfloat16")):
        model(X).sum().backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_that_moves_after_a_plan_was_applied_runs_natively(monkeypatch):
    model, before = small(), torch.backends.cuda.matmul.allow_tf32
    plan = plan_for(model, "tf32")
    with apply(model, replace(plan, matmul_precision="high")):
        model(X)
        assert torch.backends.cuda.matmul.allow_tf32 is before
        monkeypatch.setattr(applying, "_on_cuda", lambda module: True)
        emulated = []
        model[0].register_forward_hook(lambda *_: emulated.extend(map(type, modes())))
        model(X)
        assert torch.backends.cuda.matmul.allow_tf32 is True
    assert torch.backends.cuda.matmul.allow_tf32 is before
    assert EmulatedMode not in emulated


def test_a_model_with_a_part_on_a_gpu_runs_natively():
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, device="cuda"))
    with apply(model, plan_for(model, "bfloat16")) as applied:
        assert [type(listener) for listener in applied.listeners] == [NativePrecision]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_native_plan_reaches_what_computes_on_a_gpu_in_a_model_that_begins_elsewhere(device, monkeypatch):
    class Offloaded(nn.Linear):
        def forward(self, x):
            return x @ weights(4, 2)

    opened, model = [], nn.Sequential(Offloaded(4, 2, device=device), nn.ReLU())
    monkeypatch.setattr(native, "autocast_for", lambda _, device: opened.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with apply(model, plan_for(model, "bfloat16"), execution="native"):
        model(X)
    assert opened == ["cpu", "cuda"]


def test_a_submodule_called_directly_runs_under_the_plan():
    model = small()
    plain = model[0](X)
    with apply(model, plan_for(model, "bfloat16")):
        low = model[0](X)
    assert low.dtype == torch.float32
    assert not torch.equal(low, plain)


def test_a_module_inside_itself():
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x, depth):
            below = self(x, depth - 1) if depth else x
            return self.lin(below)

    model = Tree()
    with apply(model, plan_for(model, "bfloat16"), execution="emulated") as handle:
        assert model(X, 3).dtype == torch.float32
        assert handle.current is None
    assert modes() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_raising_forward_leaves_no_state(error, execution):
    def function(model, x):
        model.lin(x)
        raise error("in the middle")

    model = nn.Sequential(nn.Linear(4, 4), Inside(function))
    handle = apply(model, plan_for(model, "bfloat16", {"1": "float32"}), execution=execution)
    with pytest.raises(error, match="in the middle"):
        model(X)
    if error is ValueError:
        assert handle.current is None
        assert modes() == []
    handle.remove()
    assert handle.current is None
    assert modes() == []
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("part", ["", "0"])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_the_next_call_ends_a_forward_that_an_interrupt_cut_short(execution, part):
    """Of the model or of a part, with the weights that it has then."""
    interrupts = [KeyboardInterrupt]

    def function(model, x):
        if interrupts:
            raise interrupts.pop()
        return model.lin(x)

    model = nn.Sequential(nn.Linear(4, 4), Inside(function))
    handle = apply(model, plan_for(model, "bfloat16"), execution=execution)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    part = model.get_submodule(part)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    y = part(X)
    assert y.dtype == torch.float32
    assert not y.any()
    assert handle.current is None
    assert modes() == []
    assert not torch.is_autocast_enabled("cpu")


def test_an_applied_model_can_be_collected():
    model = small()
    apply(model, plan_for(model, "bfloat16"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- native regions


class Spy(nn.Module):
    """Notes the autocast region that it runs in."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.region = None

    def forward(self, x):
        enabled = torch.is_autocast_enabled("cpu")
        self.region = torch.get_autocast_dtype("cpu") if enabled else None
        return self.lin(x)


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_regions_follow_the_plan_module_by_module(execution):
    model = nn.Sequential(Spy(), nn.Sequential(Spy(), Spy()), Spy())
    plan = plan_for(model, "bfloat16", {"1": "float32", "1.0": "float32", "1.0.lin": "float32"})
    with apply(model, plan, execution=execution):
        y = model(X)
    regions = [m.region for m in model.modules() if isinstance(m, Spy)]
    assert regions == [torch.bfloat16, None, torch.bfloat16, torch.bfloat16]
    assert y.dtype == torch.float32


def test_code_that_asks_about_autocast_sees_an_emulated_one_and_torch_does_not():
    queries = torch.is_autocast_enabled, torch.is_autocast_cpu_enabled, torch.get_autocast_dtype

    def forward(outer, x):
        squares = outer.lin(x) * 0 + 300
        if torch.is_autocast_enabled():
            outer.note("dtype", torch.get_autocast_dtype("cuda"))
            squares = squares.float()
        with torch.autocast("cuda", enabled=False):
            outer.note("disabled", torch.is_autocast_enabled())
        outer.note("checkpoint", _get_autocast_kwargs("cpu"))
        return squares * squares

    model = Inside(forward)
    with apply(model, plan_for(model, "float16"), execution="emulated"):
        assert torch.equal(model(X), torch.full((3, 4), 300.0**2))
    assert model.seen["dtype"] == torch.float16
    assert not model.seen["disabled"]
    assert not any(region["enabled"] for region in model.seen["checkpoint"] if region)
    assert queries == (torch.is_autocast_enabled, torch.is_autocast_cpu_enabled, torch.get_autocast_dtype)


def test_native_float32_modules_get_float32_inputs():
    seen = {}

    def function(model, x):
        seen["input"] = x.dtype
        seen["product"] = (x @ x.t()).dtype
        return x * 2

    model = nn.Sequential(nn.Linear(4, 4), Inside(function))
    with apply(model, plan_for(model, "bfloat16", {"1": "float32"}), execution="native"):
        model(X)
    assert seen == {"input": torch.bfloat16, "product": torch.float32}


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_float32_module_makes_no_half_tensor_though_it_asks_for_one(execution):
    """A mask made in the dtype of scores that came in half would overflow there."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(4, 4)

        def forward(self, x):
            scores = self.score(x)
            return scores + torch.full((4,), -1e9).to(scores.dtype)

    model = Masked()
    with apply(model, plan_for(model, "float16", {"": "float32"}), execution=execution):
        assert model(X).isfinite().all()


class Product(torch.autograd.Function):
    """As its author tested it, in float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_custom_functions_of_a_float32_module_keep_float32_operands(execution):
    model = nn.Sequential(nn.Linear(4, 4), Inside(lambda outer, x: Product.apply(x, outer.lin.weight)))
    torch_own = vars(torch.autograd.Function)["apply"]
    with apply(model, plan_for(model, "bfloat16"), execution=execution), pytest.raises(RuntimeError, match="dtype"):
        model(X).sum().backward()
    with apply(model, plan_for(model, "bfloat16", {"1": "float32"}), execution=execution):
        model(X).sum().backward()
    assert vars(torch.autograd.Function)["apply"] is torch_own


@pytest.mark.parametrize(("execution", "device"), [("emulated", "cuda"), ("native", "cpu")])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_custom_functions_that_ask_for_float32_get_it_with_autocast_disabled(execution, device):
    class Squares(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type=device, cast_inputs=torch.float32)
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x * x + (x @ weight) * 0

        @staticmethod
        @torch.amp.custom_bwd(device_type=device)
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * 2 * x, None

    results = []

    def forward(outer, x):
        results.extend([outer.lin(x) * 0 + 300, Squares.apply(outer.lin(x) * 0 + 300, torch.full((4, 4), 1000.0))])
        results.append(results[0] @ torch.eye(4))
        return results[1]

    model = Inside(forward)
    with apply(model, plan_for(model, "float16"), execution=execution):
        model(X).sum().backward()
    assert [result.dtype for result in results] == [torch.float16, torch.float32, torch.float16]
    assert torch.equal(results[1], torch.full((3, 4), 300.0**2))


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_backward_pass_that_asks_for_the_forward_s_autocast_gets_the_emulated_one():
    class Decorated(Product):
        forward = staticmethod(torch.amp.custom_fwd(Product.forward, device_type="cuda"))
        backward = staticmethod(torch.amp.custom_bwd(Product.backward, device_type="cuda"))

    x = X.clone().requires_grad_()
    model = Inside(lambda outer, x: Decorated.apply(x, outer.lin.weight))
    with apply(model, plan_for(model, "bfloat16"), execution="emulated"):
        for _ in range(2):
            model(x).sum().backward()
    expected = torch.ones(3, 4) @ model.lin.weight.detach().bfloat16().float()
    assert torch.equal(x.grad, 2 * expected.bfloat16().float())
    assert torch.equal(torch.eye(4) @ model.lin.weight, model.lin.weight)  # no mode is left behind


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_view_as_half_keeps_the_bits_in_a_float32_module(execution):
    values = weights(3, 4).half()
    model = Inside(lambda outer, bits: bits.view(torch.float16) + bits.view(dtype=torch.float16))
    plan = plan_for(model, "float16", {"": "float32"})
    with apply(model, plan, execution=execution):
        assert torch.equal(model(values.view(torch.int16)), 2 * values.float())


def test_gradients_are_taken_of_the_tensors_that_a_graph_is_made_of():
    """In a float32 module too, whose other operations get its half inputs in float32."""

    class Forces(nn.Module):
        def forward(self, energy, positions):
            return torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]

    class Atoms(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.forces = nn.Linear(4, 4), Forces()

        def forward(self, x):
            positions = self.embed(x)
            return self.forces(positions.tanh(), positions)

    model = Atoms()
    exact = model(X)
    with apply(model, plan_for(model, "bfloat16", {"forces": "float32"})):
        model(X).sum().backward()
        assert torch.allclose(model(X), exact, rtol=0.05)


@pytest.mark.parametrize("execution", ["emulated", "native"])
@pytest.mark.parametrize(
    "wide", [{"modules": {"": "float32"}}, {"ops": [("", "mul", "float32")]}], ids=["module", "operation"]
)
def test_what_is_wide_in_a_module_is_not_so_in_the_modules_inside(wide, execution):
    seen = []

    def squared(x):
        seen.append((x * x).dtype)
        return x * x

    inner = Inside(lambda own, x: squared(own.lin(x)))
    model = Inside(lambda outer, x: squared(inner(x)))
    model.inner = inner
    with apply(model, plan_for(model, "bfloat16", **wide), execution=execution):
        model(X)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_model_may_list_its_own_parameters(execution):
    class Listing(nn.Sequential):
        def parameters(self):
            return list(super().parameters())

    model = Listing(nn.Linear(4, 8))
    with apply(model, plan_for(model, "bfloat16"), execution=execution):
        assert model(X).dtype == torch.float32


def test_native_exceptions_of_one_operation():
    seen = {}

    def function(model, x):
        seen["matmul"] = (x @ x.t()).dtype
        seen["mm"] = torch.mm(x, x.t()).dtype
        return x

    model = Inside(function)
    with apply(model, plan_for(model, "bfloat16", ops=[("", "matmul", "float32")]), execution="native"):
        model(X)
    assert seen == {"matmul": torch.float32, "mm": torch.bfloat16}


# ---------------------------------------------------------------- refusals


def test_half_weights_are_refused_where_they_are_trained():
    plan = Plan("bfloat16", {"0": "bfloat16", "1": "bfloat16"})
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).bfloat16())
    with pytest.raises(PrecauditError, match=r"1\.weight is in half precision"):
        apply(model, plan)
    apply(model.eval(), plan).remove()
    model[1].requires_grad_(False)
    apply(model.train(), plan).remove()
    apply(model.float(), plan).remove()


def test_a_plan_that_failed_is_put_on_with_a_warning(recwarn):
    plan = plan_for(small(), "bfloat16")
    apply(small(), replace(plan, verdict="pass"))
    apply(small(), plan)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="NOT VERIFIED") as warned:
        apply(small(), replace(plan, verdict="fail"))
    assert warned[0].filename == __file__


def test_a_plan_that_was_edited_since_its_verdict_is_put_on_with_a_warning(recwarn):
    plan = plan_for(small(), "bfloat16").judged("pass")
    apply(small(), plan)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="changed since it was profiled"):
        apply(small(), replace(plan, modules={**plan.modules, "0": "float16"}))


def changed(index, module):
    return nn.Sequential(*(module if i == index else layer for i, layer in enumerate(small())), *[module][index < 3 :])


PLANNED = {"0": "Linear", "1": "ReLU", "2": "Linear"}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (changed(3, nn.Linear(2, 2)), r"3 \(in bfloat16\)\. Nothing has verified"),
        (changed(1, nn.GELU()), r"1 \(in bfloat16\)"),
        (nn.Sequential(*small(), *(nn.Linear(2, 2) for _ in range(5))), r"3 \(in bfloat16\), 4 .*, 5 .* and 2 more"),
    ],
)
def test_modules_unknown_to_the_profile_are_warned_of(model, told):
    plan = replace(plan_for(small(), "bfloat16"), types=PLANNED, verdict="pass")
    with pytest.warns(UserWarning, match=told) as warned:
        apply(model, plan)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("model", "formats", "types"),
    [
        (small(), {}, PLANNED),
        (changed(0, nn.LazyLinear(8)), {}, PLANNED),
        (changed(0, type("Own", (nn.Linear,), {})(4, 8)), {}, PLANNED),
        (torch.compile(small(), backend="eager"), {}, PLANNED),
        (nn.DataParallel(small()), {}, PLANNED),
        (changed(1, nn.GELU()), {"1": "float32"}, PLANNED),  # runs as the model always did
        (changed(3, nn.Linear(2, 2)), {}, {}),  # a plan written by hand
    ],
)
def test_profiled_model_gives_no_warning(model, formats, types, recwarn):
    apply(model, replace(plan_for(small(), "bfloat16", formats), types=types, verdict="pass"))
    assert not recwarn.list


def test_a_plan_for_another_model_is_refused():
    plan = Plan(default="bfloat16", modules={"encoder.layers.0": "bfloat16", "head": "float32"})
    with pytest.raises(PrecauditError, match=r"doesn't fit this model: it has no module encoder\.layers\.0"):
        apply(small(), plan)


@pytest.mark.parametrize(("missing", "later"), [("0.lora_A.default", True), ("0.base_layer", True), ("3", False)])
def test_a_model_without_its_adapters_is_told_to_come_later(missing, later):
    """A trainer may put them in, after the model was built."""
    plan = Plan(default="bfloat16", modules={**dict.fromkeys("012", "bfloat16"), missing: "bfloat16"})
    with pytest.raises(PrecauditError, match=f"it has no module {missing}") as refused:
        apply(small(), plan)
    assert ("apply the plan after that" in str(refused.value)) is later


def test_an_exception_is_refused_where_its_module_is_not_and_kept_where_only_the_container_is_unplanned():
    model = nn.Sequential(small(), nn.Linear(2, 2))
    plan = Plan("bfloat16", {"0.0": "bfloat16", "0.1": "bfloat16", "0.2": "bfloat16", "1": "bfloat16"})
    misspelt, container = OpFormat("9", "linear", "float32"), OpFormat("0", "add", "float32")
    with pytest.raises(PrecauditError, match="it has no module 9"):
        apply(model, replace(plan, ops=(misspelt,)))
    with apply(model, replace(plan, ops=(container,))) as handle:
        assert handle.plan.ops == (container,)


def test_an_average_of_the_model_takes_its_plan():
    model = small()
    plan, x = plan_for(model, "bfloat16"), torch.randn(3, 4)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    expected = emulate(model, "bfloat16", x)
    with apply(averaged, plan, execution="emulated"):
        assert torch.equal(averaged(x), expected)
        assert not torch.equal(averaged(x), model(x))


def test_a_model_without_modules_inside_it_is_known_by_its_type():
    """Any name in a plan may be the model's own."""
    plan = Plan("bfloat16", {"head": "bfloat16"}, types={"head": "Linear"})
    with pytest.raises(PrecauditError, match="doesn't fit this model: it is not of the plan's type, Linear"):
        apply(nn.Conv1d(4, 4, 1), plan)
    own = type("OwnLinear", (nn.Linear,), {})
    for model in (nn.Linear(4, 4), own(4, 4), torch.compile(nn.Linear(4, 4), backend="eager")):
        apply(model, plan).remove()
    apply(nn.Conv1d(4, 4, 1), replace(plan, types={})).remove()


def test_a_plan_is_refused_around_a_part_that_has_one():
    model = small()
    apply(model, plan_for(model, "bfloat16"))
    whole = nn.Sequential(model)
    with pytest.raises(PrecauditError, match="or to a part of it"):
        apply(whole, plan_for(whole, "bfloat16"))


def crossing(model, inner):
    """What this thread and another get of a call: the other waits inside `inner` until this one is there too, and ends
    its call first."""
    inside, go_on = threading.Event(), threading.Event()

    def met(module, args):
        if threading.current_thread() is threading.main_thread():
            go_on.set()
            other.exception()
        else:
            inside.set()
            go_on.wait(10)

    with ThreadPoolExecutor(1) as pool:
        inner.register_forward_pre_hook(met)
        other = pool.submit(model, X)
        inside.wait(10)
        return model(X), other.result()


@pytest.mark.parametrize("execution", ["native", "emulated"])
def test_threads_that_call_one_model_do_not_disturb_each_other(execution):
    """One leaves in the midst of another's call: `nn.DataParallel` calls from several."""
    model = small()
    plan = Plan(default="bfloat16", modules={"0": "float32", "1": "bfloat16", "2": "float32"})
    apply(model, plan, execution=execution)
    alone = model(X)
    here, there = crossing(model, model[1])
    assert torch.equal(here, alone)
    assert torch.equal(there, alone)


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_model_with_a_scripted_part_is_refused_and_left_as_it_was(execution):
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    with pytest.raises(PrecauditError, match=r"put on 1, which torch.jit compiled.* PYTORCH_JIT=0"):
        apply(model, Plan("float16"), execution=execution)
    assert hooks(model[:1]) == []


def test_threads_that_cross_leave_torch_as_it_was():
    """A recurrent layer takes half inputs where torch is told that autocast is on, thread by thread."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    apply(model, plan_for(model, "bfloat16"))
    asked = torch._C._is_any_autocast_enabled
    alone, _ = model(X)
    (here, _), _ = crossing(model, model[0])
    assert torch.equal(here, alone)
    assert torch._C._is_any_autocast_enabled is asked


def test_a_second_plan_is_refused_until_the_first_is_gone():
    model = small()
    handle = apply(model, plan_for(model, "bfloat16"))
    with pytest.raises(PrecauditError, match="applied to this model or to a part of it"):
        apply(model, plan_for(model, "float16"))
    handle.remove()
    apply(model, plan_for(model, "float16")).remove()


def test_a_path_may_be_given_and_is_checked(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("{}")
    with pytest.raises(PrecauditError):
        apply(small(), path)
    with pytest.raises(PrecauditError, match=r"nowhere\.json"):
        apply(small(), tmp_path / "nowhere.json")


def test_a_written_plan_is_applied(tmp_path):
    model = small()
    path = tmp_path / "plan.json"
    write_json(path, plan_for(model, "bfloat16"))
    with apply(model, path) as handle:
        assert handle.plan.modules["0"] == "bfloat16"


def test_a_plan_for_several_models_fits_each_of_them():
    modules = {"generator.0": "bfloat16", "generator.1": "float32", "critic": "float16"}
    plan = Plan(default="bfloat16", modules=modules, ops=(OpFormat("generator.0", "linear", "float32"),))
    generator, critic = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 1)
    with apply(generator, plan) as handle:
        assert handle.plan.modules == {"0": "bfloat16", "1": "float32"}
        assert handle.plan.ops == (OpFormat("0", "linear", "float32"),)
    with apply(critic, plan) as handle:
        assert handle.plan.modules == {"": "float16"}


def test_models_that_are_built_alike_are_told_apart_by_name_or_refused():
    """An actor and a critic of one class: by its modules alone either got the part with the most exceptions."""
    actor = {"actor.0": "float32", "actor.1": "float16", "actor.2": "float16"}
    critic = {"critic.0": "float16", "critic.1": "float32", "critic.2": "float32"}
    plan = Plan("float16", {**actor, **critic})
    with pytest.raises(PrecauditError, match=r"may be actor or critic of the plan, .* name='actor'"):
        apply(small(), plan)
    with apply(small(), plan, name="actor") as handle:
        assert handle.plan.modules == {"0": "float32", "1": "float16", "2": "float16"}
    with pytest.raises(PrecauditError, match="no model called 'judge'; its names begin with actor, critic"):
        apply(small(), plan, name="judge")


def test_part_without_lower_formats_stands_for_its_copy():
    """A target network has none of the exceptions of the one that learns."""
    learns = {"q.0": "float32", "q.1": "float16", "q.2": "float16"}
    plan = Plan("float16", {**learns, **{f"target.{i}": "float16" for i in range(3)}})
    with apply(small(), plan) as handle:
        assert handle.plan.modules == {"0": "float32", "1": "float16", "2": "float16"}


# ---------------------------------------------------------------- what else people do with a model


def test_a_deep_copy_is_a_model_of_its_own():
    model = small()
    handle = apply(model, plan_for(model, "bfloat16"), execution="emulated")
    under = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), under)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(twin(X), under)
    handle.remove()
    assert torch.equal(twin(X), under)
    assert modes() == []


@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_an_applied_model_can_be_saved_and_loaded(execution):
    model = small()
    apply(model, plan_for(model, "bfloat16"), execution=execution)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for loaded in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_existing_hooks_run_in_the_formats_of_a_profile(execution, before):
    """Before the plan's they ran in other formats than those that were verified."""
    model, seen = small(), []

    def note(module, args, output=None):
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    if not before:
        apply(model, Plan("float32", {**plan_for(model, "float32").modules, "0": "bfloat16"}), execution=execution)
    for module in (model, model[0]):
        module.register_forward_pre_hook(note)
        module.register_forward_hook(note)
    if before:
        apply(model, Plan("float32", {**plan_for(model, "float32").modules, "0": "bfloat16"}), execution=execution)
    model(X)
    assert seen == [torch.float32, torch.bfloat16, torch.float32, torch.float32]


def test_the_state_dict_is_the_plain_one():
    model = small()
    expected = list(model.state_dict())
    apply(model, plan_for(model, "bfloat16"))
    assert list(model.state_dict()) == expected
    model.load_state_dict(small().state_dict())


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("exceptions", [{}, {"2": "float32"}], ids=["uniform", "mixed"])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_compiled_model_runs_under_the_plan(execution, exceptions, dynamo):
    model = small()
    with apply(model, plan_for(model, "bfloat16", exceptions), execution=execution):
        under = model(X)
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(X), under)
        compiled(X).sum().backward()
        assert modes() == []
        if execution == "native" and not exceptions:
            assert dynamo["stats"]["unique_graphs"] == 1
            assert dynamo["stats"]["calls_captured"] == 3
    assert torch.equal(compiled(X), model(X))
    assert not torch.equal(model(X), under)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(model):
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {
    "fsdp": sharded,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "ddp": nn.parallel.DistributedDataParallel,
    "compile inside": lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:]),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("wrapped_first", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_keep_their_names(wrapper, wrapped_first, one_process, dynamo):
    model = small()
    plan = plan_for(model, "bfloat16", {"2": "float32"})
    with apply(model, plan):
        under = model(X)
    wrapped = WRAPPERS[wrapper](model)
    with apply(wrapped if wrapped_first else model, plan):
        assert torch.equal(wrapped(X), under)


@pytest.mark.parametrize("reentrant", [True, False])
def test_native_checkpointing(reentrant):
    model = Inside(lambda outer, x: checkpoint(lambda t: outer.lin(t).exp() @ t.t(), x, use_reentrant=reentrant))
    plain = Inside(lambda outer, x: outer.lin(x).exp() @ x.t())
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        with apply(each, plan_for(each, "bfloat16"), execution="native"):
            each(X.clone().requires_grad_()).sum().backward()
    assert torch.equal(model.lin.weight.grad, plain.lin.weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("execution", ["emulated", "native"])
def test_a_checkpointed_function_is_repeated_under_the_plan(execution, reentrant):
    model = Inside(lambda outer, x: checkpoint(lambda t: (outer.lin(t) @ t.t()).relu() @ t, x, use_reentrant=reentrant))
    plain = Inside(lambda outer, x: (outer.lin(x) @ x.t()).relu() @ x)
    plain.load_state_dict(model.state_dict())
    torch_own = vars(torch.utils.checkpoint.CheckpointFunction)["forward"]
    for each in (model, copy.deepcopy(model), plain):
        plan = replace(plan_for(each, "bfloat16"), ops=(OpFormat("", "relu", "float32"),))
        with apply(each, plan, execution=execution):
            each(X.clone().requires_grad_()).sum().backward()
        assert torch.equal(each.lin.weight.grad, model.lin.weight.grad)
    assert vars(torch.utils.checkpoint.CheckpointFunction)["forward"] is torch_own


def test_a_model_that_is_gone_leaves_no_checkpointing_wrapped():
    gc.collect()
    torch_own = vars(torch.utils.checkpoint.CheckpointFunction)["forward"]
    model = Inside(lambda outer, x: outer.lin(x))
    apply(model, plan_for(model, "bfloat16"))
    model(X)
    assert vars(torch.utils.checkpoint.CheckpointFunction)["forward"] is not torch_own
    del model
    gc.collect()
    assert vars(torch.utils.checkpoint.CheckpointFunction)["forward"] is torch_own
