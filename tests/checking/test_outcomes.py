"""From what the script's process saw to findings, and their severities."""

import pytest

from precaudit.checking.outcomes import hard_inputs, outputs
from precaudit.checking.records import Deployment, HardInput, Observed, OutputMatch
from precaudit.model import Plan

HALF = Deployment("float16", Plan("float16"), 0.01, "because")


def match(**values):
    default = {"format": "float16", "model": "net", "output": "", "batches": 4, "values": 100, "error": 1e-9}
    return OutputMatch(**default | values)


def of_outputs(*matches, **observed):
    return outputs(Observed(outputs=matches, **observed), HALF)


def of_hard(**values):
    return hard_inputs(Observed(hard_inputs=(HardInput("float16", "net", **{"kind": "zeros"} | values),)), HALF)


def only(answer):
    [finding] = answer.findings
    return finding


@pytest.mark.parametrize(("error", "rules"), [(0.0099, []), (0.0101, ["PA731"])])
def test_error_is_compared_with_the_tolerance(error, rules):
    answer = of_outputs(match(signal=1.0, error=error**2))
    assert [finding.rule for finding in answer.findings] == rules
    assert answer.status == ("failed" if rules else "passed")
    assert "allowed 1.0%, because" in answer.detail


def test_large_error_is_stated_with_its_size():
    finding = only(of_outputs(match(output="logits", signal=1.0, error=0.25)))
    assert "net, output logits is off by 50.0% of its rms in float16 (SNR 6.02 dB)" in finding.message
    assert finding.evidence["snr_db"] == pytest.approx(6.0206, abs=1e-4)


@pytest.mark.parametrize(("agreeing", "near", "rules"), [(99, 0, []), (98, 1, []), (98, 0, ["PA732"]), (0, 100, [])])
def test_top_one_may_differ_at_near_ties(agreeing, near, rules):
    answer = of_outputs(match(signal=1.0, rows=100, agreeing=agreeing, near_ties=near))
    assert [finding.rule for finding in answer.findings] == rules


def test_nonfinite_values_are_an_error_and_those_of_float32_a_warning():
    answer = of_outputs(match(signal=1.0, nonfinite=2), match(model="old", signal=1.0, reference_nonfinite=3))
    assert {f.rule: f.severity for f in answer.findings} == {"PA733": "error", "PA736": "warning"}


def test_exception_under_the_plan_only_is_an_error():
    raised = (("float16", "net", "RuntimeError: unsafe"), ("bfloat16", "net", "other"))
    answer = of_outputs(raised=raised)
    assert only(answer).rule == "PA734"
    assert "RuntimeError: unsafe" in only(answer).message


@pytest.mark.parametrize(("matches", "severity"), [((), "error"), ((match(signal=1.0),), "warning")])
def test_check_fails_if_no_output_could_be_compared(matches, severity):
    answer = of_outputs(*matches, unanswered={"other": "TypeError: no"})
    assert (only(answer).rule, only(answer).severity) == ("PA735", severity)


def test_outputs_of_other_deployments_are_ignored():
    answer = of_outputs(match(format="bfloat16", signal=1.0, error=1.0))
    assert not answer.findings
    assert answer.status == "not measured"


@pytest.mark.parametrize(
    ("values", "rule", "severity"),
    [
        ({"nonfinite": 1}, "PA741", "error"),
        ({"raised": "ValueError: x"}, "PA741", "error"),
        ({"reference_nonfinite": 1}, "PA741", "warning"),
        ({"kind": "large", "nonfinite": 1, "safe_exponent": 9}, "PA742", "warning"),
        ({"kind": "large", "nonfinite": 1, "safe_exponent": 0}, "PA742", "warning"),
        ({"kind": "large", "raised": "ValueError: x"}, "PA742", "error"),
        ({"kind": "denormals", "nonfinite": 1}, "PA743", "error"),
        ({"kind": "batch of one", "nonfinite": 1}, "PA744", "error"),
        ({"kind": "longest", "nonfinite": 1}, "PA745", "error"),
    ],
)
def test_hard_inputs(values, rule, severity):
    finding = only(of_hard(**values))
    assert (finding.rule, finding.severity) == (rule, severity)
    assert finding.suggestion


def test_hard_inputs_that_are_finite_or_were_not_tried():
    assert of_hard().status == "passed"
    assert of_hard(skipped="it has no floating-point input").status == "not measured"


def test_an_output_that_only_float32_has_was_not_compared():
    aux = match(output="aux", batches=1, values=0, missing=3)
    beside = only(of_outputs(match(output="y", signal=1.0), aux))
    assert (beside.rule, beside.severity) == ("PA735", "warning")
    assert "output aux is there in float32, and in 3 calls not in float16" in beside.message
    assert only(of_outputs(aux)).severity == "error"


@pytest.mark.parametrize("faulty", [0, 64])
def test_where_float32_has_no_finite_value_nothing_was_compared(faulty):
    """Masked scores at -inf are not faulty, and say as little."""
    answer = of_outputs(match(values=0, reference_nonfinite=faulty))
    assert (answer.status, answer.findings[-1].rule) == ("failed", "PA735")
    assert of_outputs(match(values=0), match(output="y", signal=1.0)).status == "passed"
