"""`--fail-on` of compare and of profile: what each rule catches, and what is refused."""

from dataclasses import replace

import pytest
from synthetic_reports import gpt, profile, timed, with_autocast

from precaudit.catalogue.metrics import FAMILIES, METRICS
from precaudit.comparison.compare import compare
from precaudit.comparison.limits import LIMITS, matches_fail_on, parse_rules
from precaudit.comparison.rows import title
from precaudit.comparison.thresholds import DEFAULTS, asked_for, parse_thresholds, thresholds_help
from precaudit.errors import PrecauditError
from precaudit.model import (
    Difference,
    Finding,
    Layer,
    LossScale,
    Plan,
    Report,
    TensorCores,
    TensorRecord,
    TensorStats,
    TimeShare,
    Verification,
)


def test_a_rule_changes_its_own_threshold_only():
    assert parse_thresholds(["amax:6"]) == {**DEFAULTS, "amax": 6.0}
    assert parse_thresholds(["time:35%", "amin: 3"]) == {**DEFAULTS, "time": 35.0, "amin": 3.0}
    assert parse_thresholds(["all:off", "verdict:1"]) == {**dict.fromkeys(METRICS), "verdict": 1.0}


@pytest.mark.parametrize(
    "rule", ["amax", "amax:", "amax:x", "amax:nan", "amax:-1", "amax:0", "amax:inf", "all:3", "PA101", ""]
)
def test_a_rule_that_means_nothing_is_refused_in_words(rule):
    with pytest.raises(PrecauditError, match="--fail-on"):
        parse_thresholds([rule])


def test_an_unknown_metric_is_answered_with_the_list():
    with pytest.raises(PrecauditError) as caught:
        parse_thresholds(["speed:3"])
    assert all(name in str(caught.value) for name in METRICS)


def test_the_help_names_every_metric_with_its_default():
    text = thresholds_help()
    assert all(name in text and metric.help in text for name, metric in METRICS.items())
    assert {metric.family for metric in METRICS.values()} == set(FAMILIES)


def test_rules_with_a_number_ask_for_a_metric_by_name():
    assert asked_for(["amax:6", "time:off", "all:off", "verdict:1"]) == ("verdict",)
    assert asked_for(["time:5", "time:9"]) == ("time",)


def test_thresholds_decide_what_fails():
    base, head = profile(gpt(), 0), profile([s for s in gpt() if s.fqn != "blocks.0.act"], 0)
    assert not compare(base, head).clean
    assert compare(base, head, parse_thresholds(["layers_removed:2"])).clean
    assert compare(base, head, parse_thresholds(["all:off"])).clean
    assert not compare(base, head, parse_thresholds(["all:off", "layers_removed:1"])).clean


def measured_all():
    """A report in which every metric finds what it compares."""
    cores = TensorCores(True, device="H100", time_share=TimeShare(0.5, 0.1, 0.4, 0.0), eligible_flops_share=0.5)
    plan = Plan("bfloat16", {"a": "bfloat16", "b": "bfloat16"}, target="H100")
    proof, speed = Verification("pass"), timed(0.1)
    seeing = replace(with_autocast("bfloat16"), plan=plan, verification=proof, tensor_cores=cores)
    return replace(seeing, environment=speed.environment, performance=speed.performance)


@pytest.mark.parametrize(
    "metric", sorted(DEFAULTS.keys() - {name for name in DEFAULTS if name.startswith(("new_", "layers_"))})
)
def test_a_gate_asked_for_by_name_does_not_open_on_what_it_cannot_see(metric):
    blind, seeing, only = Report(environment={"device": "NVIDIA H100"}), measured_all(), {metric: 1.0}
    assert compare(seeing, seeing, only, asked=[metric]).clean
    for base, head in ((seeing, blind), (blind, seeing)):
        (change,) = compare(base, head, only, asked=[metric]).regressions
        assert change.metric == metric
        assert "can't be compared" in change.message


def test_plan_metrics_fail_without_a_plan_or_with_other_targets():
    seeing = measured_all()
    elsewhere = replace(seeing, plan=replace(seeing.plan, target="A100"))
    without = replace(seeing, plan=Plan(target="H100"))
    for head, why in ((elsewhere, "different targets"), (without, "plan: none in head")):
        comparison = compare(seeing, head, asked=["formats"])
        assert [change.metric for change in comparison.regressions] == ["formats"]
        assert any(why in reason for reason in comparison.not_comparable)
        assert compare(seeing, head).clean


def test_unverified_head_is_stated_in_the_title():
    seeing = measured_all()
    assert "verdicts" not in title(compare(seeing, seeing))
    head = replace(seeing, verification=Verification("not_run"))
    assert title(compare(seeing, head)).endswith("matched, verdicts not compared")


def test_screened_head_is_not_compared_as_verified():
    seeing = measured_all()
    screened = replace(seeing, verification=Verification("screened"))
    assert any("head was screened" in reason for reason in compare(seeing, screened).not_comparable)
    assert any("base was screened" in reason for reason in compare(screened, seeing).not_comparable)
    assert not compare(screened, screened).not_comparable


@pytest.mark.parametrize("verdict", ["pass", "not_run"])
def test_interrupted_run_is_a_regression(verdict):
    base = replace(measured_all(), verification=Verification(verdict))
    crashed = replace(
        base, job={**base.job, "stopped": "failed", "steps": 3}, verification=Verification(reason="ValueError: broken")
    )
    (change,) = compare(base, crashed).regressions
    assert change.metric == "verdict"
    assert change.message.startswith("CUT SHORT: the script failed after 3 steps")
    assert change.message.endswith("Why: ValueError: broken")
    assert not compare(crashed, crashed).regressions


def test_a_run_that_measured_nothing_has_not_lost_its_layers():
    base = measured_all()
    crashed = Report(job={**base.job, "stopped": "failed", "steps": 0}, environment=base.environment)
    (change,) = compare(base, crashed).regressions
    assert change.message.startswith("NOTHING MEASURED: the script failed before its first step")
    cut = replace(base, job={**base.job, "stopped": "failed"})
    assert [each.metric for each in compare(cut, crashed).regressions] == ["verdict"]


# ---------------------------------------------------------------- one report


def report(**parts):
    stats = TensorStats(numel=10, amax=2.0**14, amin_nonzero=1.0, nonfinite=2)
    layers = (Layer("fc", "Linear", 4, 1, (TensorRecord("activation", stats),)),)
    modules = {"fc": "float16", "proj": "float16", "norm": "float32"}
    plan = Plan("float16", modules, loss_scale=LossScale("dynamic", predicted_skips=3.0))
    findings = (
        Finding("PA101", "error", "overflows", "bf16", "fc"),
        Finding("PA301", "warning", "unaligned", "pad", "fc"),
        Finding("PA301", "warning", "unaligned", "pad"),
    )
    proof = Verification("pass", difference=Difference(0.0, -0.001, 0.002))
    cores = TensorCores(True, "kineto", TimeShare(0.5, 0, 0.5, 0), eligible_flops_share=0.9)
    defaults = {"layers": layers, "plan": plan, "findings": findings, "verification": proof, "tensor_cores": cores}
    return Report(**(defaults | parts))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("error", "1 finding: PA101 in fc"),
        ("warning", "3 findings: PA101 in fc, PA301 in fc, PA301 in the job"),
        ("PA301", "2 findings: PA301 in fc, PA301 in the job"),
        ("headroom:4", "1 value: fc activation has 2, below the threshold"),
        ("nonfinite:0", "1 value: fc activation has 2, above the threshold"),
        ("float32_share:30%", "1 value: the plan has 0.333, above the threshold"),
        ("predicted_skips:2", "1 value: the loss scale has 3, above the threshold"),
        ("loss_difference:0.001", "1 value: the verification has 0.002, above the threshold"),
        ("tensor_cores:60%", "1 value: the kernels has 0.5, below the threshold"),
        ("eligible_flops:0.95", "1 value: the operations has 0.9, below the threshold"),
    ],
)
def test_broken_rule_names_the_places(rule, sentence):
    (matched,) = matches_fail_on(report(), [rule])
    assert matched.startswith("--fail-on ")
    assert matched.endswith(sentence)


@pytest.mark.parametrize(
    "rule",
    ["PA401", "headroom:1", "nonfinite:2", "float32_share:34%", "predicted_skips:3", "loss_difference:1%",
     "tensor_cores:50%", "eligible_flops:0.9", "overflow:0", "flushed_energy:0"],
)  # fmt: skip
def test_kept_rule_has_no_message(rule):
    assert matches_fail_on(report(), [rule]) == ()


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [("error", "PA101 in the model itself"), ("headroom:4", "the model itself activation has 2, below the threshold")],
)
def test_the_model_itself_has_a_name_in_a_broken_rule(rule, sentence):
    (layer,), plan = report().layers, Plan("float16", {"": "float16"})
    findings = (Finding("PA101", "error", "overflows", "bf16", ""),)
    (matched,) = matches_fail_on(report(layers=(replace(layer, fqn=""),), plan=plan, findings=findings), [rule])
    assert matched.endswith(sentence)


def test_untrained_models_have_no_headroom_limit():
    (layer,) = report().layers
    teacher = replace(layer, fqn="teacher.head", trained=False)
    assert matches_fail_on(report(layers=(teacher,)), ["headroom:4"]) == ("--fail-on headroom:4: not measured",)
    inside = replace(layer, fqn="blocks")  # computes between its children, which alone are in plan.modules
    assert "blocks activation has 2" in matches_fail_on(report(layers=(inside,)), ["headroom:4"])[0]


def test_a_finding_that_the_plan_settles_matches_and_is_told_so():
    settled = Finding("PA106", "error", "rounds", "float32", "norm", evidence={"formats": "float16"})
    (matched,) = matches_fail_on(report(findings=(settled,)), ["error"])
    assert matched == "--fail-on error: 1 finding: PA106 in norm (settled by the plan)"


def test_names_in_messages_are_one_line():
    finding = Finding("PA101", "error", "overflows", "bf16", "a\n::error ::x")
    (matched,) = matches_fail_on(report(findings=(finding,)), ["error"])
    assert "\n" not in matched
    assert "\\n::error" in matched


def test_overflow_and_flushed_energy_are_those_of_the_planned_format():
    layers = profile(gpt(), 0).layers[2:3]
    (layer,) = layers
    plan = Plan("float16", {layer.fqn: "float16"})
    shifted = [TensorRecord("activation", layer.tensors[0].stats.shift(k)) for k in (30, -30)]
    large, small = (report(layers=(Layer(layer.fqn, "Linear", 1, 1, (t,)),), plan=plan) for t in shifted)
    assert matches_fail_on(large, ["overflow:1%"])
    assert matches_fail_on(small, ["flushed_energy:1%"])
    assert not matches_fail_on(large, ["flushed_energy:1%"])
    assert not matches_fail_on(small, ["overflow:1%"])


def test_a_figure_that_was_not_measured_breaks_its_rule():
    empty = Report()
    for name in LIMITS.keys() - {"predicted_skips"}:
        (sentence,) = matches_fail_on(empty, [f"{name}:1"])
        assert sentence.endswith("not measured")
    assert matches_fail_on(empty, ["predicted_skips:0"]) == ()  # no loss scale: nothing to skip


@pytest.mark.parametrize(
    "rule", ["errors", "pa101", "PA1", "PA999", "headroom", "headroom:", "headroom:x", "amax:3", "headroom:inf"]
)
def test_an_unknown_rule_is_refused_before_any_work(rule):
    with pytest.raises(PrecauditError, match="--fail-on"):
        parse_rules([rule])
