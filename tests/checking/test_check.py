"""The whole gate in this process: what it finds in models that it runs."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from checked import TYPES, Net, answer, batches, check, check_trained, check_training, plan, rules
from torch import nn

from precaudit.checking.repeating import Repeater
from precaudit.errors import ExitCode, PrecauditError
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.model import OpFormat, Plan


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_plan_that_holds(name):
    report = check(plan(name))
    assert report.passed
    assert [a.status for a in report.answers] == ["passed"] * 5
    [match] = report.outputs
    assert match.batches == 4
    assert match.rows == 64
    roundoff = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}[name]
    assert match.relative_error <= 4 * roundoff
    assert (match.relative_error > roundoff / 8) == (name != "float32")


def test_the_error_is_that_of_rounding_by_hand():
    """One linear layer in bfloat16: operands and result rounded once."""
    layer, data = nn.Linear(8, 4), batches()
    report = check(plan(modules={"": "bfloat16"}, types={"": "Linear"}), lambda: layer, data)
    half = torch.bfloat16
    signal = error = 0.0
    for x in data[-4:]:
        wanted = layer(x).detach().double()
        w, b = layer.weight.detach().to(half).float(), layer.bias.detach().to(half).float()
        got = nn.functional.linear(x.to(half).float(), w, b).to(half).double()
        signal += float(wanted.square().sum())
        error += float((got - wanted).square().sum())
    assert report.outputs[0].relative_error == pytest.approx(math.sqrt(error / signal), rel=1e-6)


def test_weights_and_modes_stay_as_built():
    model = Net().train()
    model.dropout = nn.Dropout()
    before = [p.clone() for p in model.parameters()]
    check(plan(), lambda: model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model.training  # the model file's loop asks for eval mode, and nothing changes it back
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("made", ["traced", "exported"])
def test_exported_graph_is_called_as_it_is_and_not_checked_as_the_model(made):
    """It has no signature, or refuses eval mode; what the plan does inside can't be seen."""
    inputs = (torch.zeros(2, 8),)
    model = nn.Sequential(nn.Linear(8, 4))
    graph = torch.jit.trace(model, inputs) if made == "traced" else torch.export.export(model, inputs).module()
    report = check(plan(modules={"0": "bfloat16"}, types={"0": "Linear"}), lambda: graph, [(*inputs, torch.ones(2))])
    assert "PA705" in rules(report)


def test_data_out_of_range_is_refused():
    report = check(plan("float16"), data=batches(1e5))
    assert not report.passed
    assert {"PA711", "PA733"} <= rules(report)
    finding = next(f for f in report.findings if f.rule == "PA711")
    assert (finding.fqn, finding.op) == ("hidden", "linear")
    assert "above float16's maximum" in finding.message
    assert "profile with this data" in finding.suggestion
    assert check(plan("bfloat16"), data=batches(1e5)).passed


def ones(inputs):
    """A linear layer whose results are the sum of its eight inputs."""
    layer = nn.Linear(8, 4, bias=False)
    nn.init.ones_(layer.weight)
    wanted = plan("float16", modules={"": "float16"}, types={"": "Linear"})
    return check(wanted, lambda: layer, [torch.full((2, 8), inputs)])


@pytest.mark.parametrize(
    ("result", "status"), [(16000, "passed"), (17000, "warned"), (65000, "warned"), (66000, "failed")]
)
def test_lost_headroom_is_a_warning(result, status):
    """float16 ends at 65504, a factor of four above 16376."""
    assert answer(ones(result / 8), "ranges").status == status


def test_module_kept_in_float32_may_be_out_of_range():
    excepted = {"hidden": "float32", "norm": "float32", "out": "float16", "": "float16"}
    report = check(plan("float16", modules=excepted), data=batches(1e5))
    assert answer(report, "ranges").status == "passed"
    assert answer(report, "outputs").status == "passed"


def test_an_excepted_operation_may_be_out_of_range():
    class Squares(Net):
        def forward(self, x):
            return self.out(torch.relu(self.norm(self.hidden(x)))) * 3e4

    wanted = plan("float16", types={"": "Squares"})
    assert "PA711" in rules(check(wanted, Squares))
    excepted = plan("float16", types={"": "Squares"}, ops=(OpFormat("", "mul", "float32"),))
    assert "PA711" not in rules(check(excepted, Squares))


def test_formats_option_checks_another_deployment():
    wanted = plan("bfloat16")
    report = check(wanted, data=batches(1e5), formats=("float16", "bfloat16"))
    assert {a.format for a in report.answers if a.status == "failed"} == {"float16"}
    assert "ranges" in {a.question for a in report.answers if a.status == "failed"}


def test_target_without_the_format_is_refused():
    assert rules(check(plan(), target="t4")) == {"PA721"}
    assert check(plan(), target="t4", formats=("float16",)).passed
    with pytest.raises(PrecauditError, match=r"unknown GPU 'cray'; known GPUs: .*plan's own target"):
        check(plan(target="cray"))


def test_tolerance():
    assert rules(check(plan(), tolerance=1e-4)) == {"PA731"}
    assert check(plan(), tolerance=0.1).passed


def test_a_changed_model_is_refused():
    class Changed(Net):
        def __init__(self):
            super().__init__()
            self.first = self.hidden
            del self.hidden
            self.norm = nn.Identity()

        def forward(self, x):
            return self.out(torch.relu(self.norm(self.first(x))))

    report = check(plan(types={"": "Changed", "hidden": "Linear", "norm": "LayerNorm", "out": "Linear"}), Changed)
    assert {"PA703", "PA705"} <= rules(report)
    assert answer(report, "coverage").status == "failed"


class Logits(nn.Module):
    """Token ids in, and a dictionary out; sequences of several lengths."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 20)
        self.scale = scale

    def forward(self, ids):
        hidden = self.embed(ids).cumsum(1) * self.scale
        return {"logits": self.head(hidden), "lengths": torch.tensor(ids.shape[1])}


LOGITS = {"embed": "Embedding", "head": "Linear", "": "Logits"}


def token_batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(20, (2, length), generator=generator) for length in (3, 50, 4, 5, 6, 7, 8, 9)]


def test_token_ids_and_the_longest_sequence():
    wanted = plan("float16", modules=dict.fromkeys(LOGITS, "float16"), types=LOGITS)
    report = check(wanted, Logits, token_batches())
    assert report.passed
    assert [m.output for m in report.outputs] == ["logits"]
    hard = {h.kind: h for h in report.hard_inputs}
    assert hard["large"].skipped == hard["denormals"].skipped == "it has no floating-point input"
    assert not hard["longest"].skipped


def test_the_longest_sequence_alone_may_overflow():
    """The last four batches are short; the sums of fifty tokens reach beyond float16."""
    wanted = plan("float16", modules=dict.fromkeys(LOGITS, "float16"), types=LOGITS)

    def build():
        torch.manual_seed(0)
        model = Logits(scale=1500.0)
        nn.init.ones_(model.embed.weight)
        nn.init.ones_(model.head.weight)
        return model

    report = check(wanted, build, token_batches(), steps=8)
    assert [(h.kind, h.nonfinite > 0) for h in report.hard_inputs if h.kind == "longest"] == [("longest", True)]


@pytest.mark.parametrize(("inputs", "exponent"), [(16.0, 8), (1024.0, 2), (4097.0, 0)])
def test_large_inputs_say_how_far_they_may_grow(inputs, exponent):
    """Results of 8 x inputs x 2^k: 2^16 overflows."""
    report = ones(inputs)
    large = next(h for h in report.hard_inputs if h.kind == "large")
    assert large.safe_exponent == exponent
    assert answer(report, "hard inputs").status == "warned"


def test_a_batch_of_one_that_divides_by_zero():
    class Standardised(nn.Linear):
        def forward(self, x):
            return super().forward((x - x.mean(0)) / x.std(0, correction=0))

    report = check(plan(modules={"": "bfloat16"}, types={"": "Standardised"}), lambda: Standardised(8, 4))
    found = {f.rule: f for f in report.findings}
    assert found["PA744"].severity == "warning"
    assert "in float32 too" in found["PA744"].message
    assert report.passed


def test_a_model_that_raises_under_the_plan():
    class Probability(nn.Linear):
        def forward(self, x):
            return nn.functional.binary_cross_entropy(super().forward(x).sigmoid(), torch.ones(len(x), 4))

    report = check(plan(modules={"": "bfloat16"}, types={"": "Probability"}), lambda: Probability(8, 4))
    found = {f.rule: f for f in report.findings}
    assert "unsafe to autocast" in found["PA734"].message
    assert "PA717" in found


def test_several_inputs_mappings_and_labels():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x, bias=None):
            return self.fc(x) if bias is None else self.fc(x) + bias

    wanted = plan(modules={"fc": "bfloat16", "": "bfloat16"}, types={"fc": "Linear", "": "Two"})
    x, bias, labels = torch.randn(4, 8), torch.randn(4), torch.zeros(4)
    for batch in ((x,), [x, bias], (x, bias, labels), {"x": x, "bias": bias}, x):
        report = check(wanted, Two, [batch])
        assert "PA735" not in rules(report)
        assert len(report.outputs) == 1


@dataclass
class Scores:
    logits: torch.Tensor


class Opaque:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(("kind", "seen"), [(Scores, True), (Opaque, False)])
def test_outputs_in_an_object_of_the_models_own(kind, seen):
    """A gate that can't see into them doesn't open."""

    class Wrapping(Net):
        def forward(self, x):
            return kind(super().forward(x) * 1e6)

    report = check(plan("float16", types={**TYPES, "": "Wrapping"}), Wrapping)
    assert ("PA733" in rules(report)) is seen
    assert ("PA735" in rules(report)) is not seen
    assert not report.passed
    if not seen:
        assert answer(report, "hard inputs").status == "not measured"


def test_loss_says_how_a_batch_enters_the_model():
    data = [{"inputs": x, "labels": torch.zeros(16, dtype=torch.long)} for x in batches()]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])

    report = check(plan(), data=data, loss=loss)
    assert report.passed
    assert report.job["calls"] == 8


def test_a_training_script_is_checked_in_eval_mode():
    report = check_trained(plan("float16"), lambda model, x: model(x).square().mean(), batches())
    assert report.passed
    assert report.job["steps"] == 8
    assert report.job["counted"] == "optimizer steps"
    assert "in 8 optimizer steps" in answer(report, "coverage").detail


def test_a_loss_that_is_nan_in_float32():
    report = check_trained(plan(), lambda model, x: model(x).square().mean(), batches(math.nan))
    found = {f.rule: f for f in report.findings}
    assert "nan at step 0 in float32 already" in found["PA718"].message


def test_a_script_that_only_infers():
    def code():
        model = Net()
        with torch.no_grad():
            for x in batches():
                model(x)

    report = check_training(plan(), code)
    assert answer(report, "ranges").status == "not measured"
    assert answer(report, "outputs").status == "passed"
    assert rules(report) == {"PA719"}


def test_inputs_that_scripts_overwrite_are_kept():
    """A static buffer, as CUDA graphs have it: the compared batches are those that the model saw."""

    def code():
        model, buffer = Net(), torch.empty(16, 8)
        with torch.no_grad():
            for x in batches():
                buffer.copy_(x)
                model(buffer)
            buffer.fill_(math.nan)

    assert answer(check_training(plan(), code), "outputs").status == "passed"


def test_the_scripts_own_half_precision_is_not_the_reference():
    """`.half()` in the script would make float16 its own reference; it runs in float32 first."""

    def code():
        model = Net().bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for x in batches():
            model(x.bfloat16()).square().mean().backward()
            optimizer.step()

    report = check_training(plan("float16"), code)
    assert 2.0**-14 < report.outputs[0].relative_error < 2.0**-8


def test_a_script_that_casts_into_its_own_autocast_runs_in_float32_without_both():
    """With its autocast off alone it fails: the weights are float32, what it feeds them isn't."""

    def code():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for x in batches():
            with torch.autocast("cpu", torch.bfloat16):
                model(x.bfloat16()).square().mean().backward()
            optimizer.step()

    assert answer(check_training(plan(), code), "outputs").status == "passed"


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (lambda: 1 / 0, ExitCode.SCRIPT_FAILED, "ZeroDivisionError"),
        (lambda: {}["LOCAL_RANK"], ExitCode.SCRIPT_FAILED, "torchrun --nproc_per_node 1 -m precaudit check"),
        (lambda: None, ExitCode.NOTHING_TO_MEASURE, "no torch.nn.Module with parameters"),
        (lambda: nn.ReLU()(torch.ones(3)), ExitCode.NOTHING_TO_MEASURE, "build_model"),
    ],
)
def test_nothing_to_check(code, exit_code, words):
    with pytest.raises(PrecauditError, match=words) as caught:
        check_training(plan(), code)
    assert caught.value.exit_code == exit_code


def test_no_batches():
    with pytest.raises(PrecauditError, match="no batch") as caught:
        check(plan(), data=iter(()))
    assert caught.value.exit_code == ExitCode.NOTHING_TO_MEASURE


def test_native_needs_cuda():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(PrecauditError, match=r"^--execution native needs .*; use --execution emulated$"):
        check(plan(), execution="native")


def test_native_precision_is_torchs_autocast():
    """On the CPU here, to see that regions open and close: what `check` itself refuses, as its rounding is another."""
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    scopes = ModuleScopes(ModuleNames())
    with scopes.installed():
        repeater = Repeater(scopes, lambda: False, "native")
        got = repeater.under(model, Plan("bfloat16", {"": "bfloat16"}))(((x,), {}))[""]
        exact = repeater.float32(model)(((x,), {}))[""]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(got, model(x).float())
    assert torch.equal(exact, model(x).detach())
    assert not torch.equal(got, exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_native_on_cuda(name):
    def code():
        model = Net().cuda()
        with torch.no_grad():
            for x in batches():
                model(x.cuda())

    report = check_training(plan(name), code)
    assert report.execution == "native"
    assert report.passed
    assert 0 < report.outputs[0].relative_error < 16 * {"bfloat16": 2.0**-8, "float16": 2.0**-11}[name]


@pytest.mark.parametrize(
    ("verdict", "severity", "words"),
    [
        ("fail", "error", "NOT VERIFIED"),
        ("inconclusive", "warning", "NOT DECIDED"),
        ("screened", "note", "SCREENED"),
        ("not_run", "note", "NOT VERIFIED"),
        ("pass", None, "VERIFIED"),
    ],
)
def test_verdict_stored_in_the_plan_is_reported(verdict, severity, words):
    report = check(plan(verdict=verdict))
    assert answer(report, "verification").detail.endswith(f"was {words}")
    assert [f.severity for f in report.findings if f.rule == "PA761"] == ([severity] if severity else [])
    assert report.passed == (verdict != "fail")


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_verdict_does_not_cover_an_edited_plan(verdict):
    kept = plan().judged(verdict)
    edited = replace(kept, ops=(OpFormat("out", "linear", "float32"),))
    for formats in ((), ("bfloat16", "float16")):
        assert [f.severity for f in check(edited, formats=formats).findings if f.rule == "PA761"] == ["warning"]
    assert [f.severity for f in check(kept).findings if f.rule == "PA761"] == ["error"] * (verdict == "fail")


@pytest.mark.parametrize(("formats", "told"), [((), []), (("bfloat16",), []), (("bfloat16", "float16"), [["float16"]])])
def test_verdict_does_not_cover_other_formats(formats, told):
    report = check(plan(verdict="pass"), formats=formats)
    found = [(f.severity, f.evidence["formats"]) for f in report.findings if f.rule == "PA761"]
    assert found == [("note", others) for others in told]
    (verdict,) = (answer.detail for answer in report.answers if answer.question == "verification")
    assert verdict.partition(" was VERIFIED")[2] == "".join(f", and there is none on it in {each[0]}" for each in told)
    assert report.passed


@pytest.mark.parametrize("silent", [plan(), plan("float32", verdict="fail")])
def test_no_verification_answer_without_a_verdict_or_low_precision(silent):
    assert "verification" not in {answer.question for answer in check(silent).answers}


class InHalf(nn.Module):
    """Answers with what `otherwise` makes of its scores where these are not float32."""

    def __init__(self, otherwise):
        super().__init__()
        self.otherwise, self.inner = otherwise, nn.Linear(8, 4)

    def forward(self, x):
        y = self.inner(x)
        return (y, y) if y.dtype == torch.float32 else self.otherwise(y)


@pytest.mark.parametrize(
    ("otherwise", "found", "passed"),
    [
        (lambda y: (y, y), set(), True),
        (lambda y: (y,), {"PA735"}, True),
        (lambda y: y.argmax(-1), {"PA735"}, False),
    ],
)
def test_outputs_missing_under_the_plan(otherwise, found, passed):
    made = Plan("bfloat16", {"": "bfloat16", "inner": "bfloat16"}, types={"": "InHalf", "inner": "Linear"})
    report = check(made, lambda: InHalf(otherwise))
    assert rules(report) == found
    assert report.passed == passed


class Zeros(nn.Module):
    """A head that begins at zero, as those of residual branches and denoisers do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 4)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(("name", "told"), [("bfloat16", ["warning"]), ("float32", [])])
def test_unchanged_outputs_are_a_warning(name, told):
    made = Plan(name, {"": name, "inner": name}, types={"": "Zeros", "inner": "Linear"})
    report = check(made, Zeros)
    assert [(f.rule, f.severity) for f in report.findings] == [("PA735", severity) for severity in told]
    assert report.passed
