"""What the verdict, the advice and the findings say in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples

from precaudit.finding import USE_THE_PLAN, finding
from precaudit.model import Difference, Location, OpFormat, Plan, Repair, Trial, Verification
from precaudit.reporting import pasting, planned, ranges, render, unfinished
from precaudit.reporting.actions import actions, counts
from precaudit.reporting.facts import settled
from precaudit.reporting.headline import headline
from precaudit.reporting.html import render_html
from precaudit.reporting.markdown import render_markdown
from precaudit.reporting.notebook import summary_html
from precaudit.reporting.places import place
from precaudit.reporting.results import results
from precaudit.reporting.terminal import render_terminal
from precaudit.reporting.undecided import what_decides

VERDICTS = {
    "fail": "NOT VERIFIED: float16 does not train like float32 (difference +0.01%, allowed ±0.25%)",
    "inconclusive": "NOT DECIDED: whether float16 trains the same as float32 (difference -0.04% to +0.06%",
    "screened": "SCREENED, not verified: float16 looks the same",
    "not_run": "NOT VERIFIED: float16 is proposed",
}


@pytest.mark.parametrize(("verdict", "words"), VERDICTS.items())
def test_other_verdicts_never_say_verified_alone(verdict, words):
    report = report_samples.passing()
    head = headline(replace(report, verification=replace(report.verification, verdict=verdict)))
    assert head.title.startswith(words)
    assert not head.title.startswith("VERIFIED")


def test_using_the_plan_is_said_once():
    report = report_samples.passing()
    strays = finding("PA501", "error", "as written it strays", USE_THE_PLAN, location=Location("train.py", 3))
    report = replace(report, findings=(*report.findings, strays))
    first, *rest = actions(report)
    assert first.startswith("Train with the plan instead of the script's own mixed precision: paste")
    assert not any("script's own" in action for action in rest)
    more = replace(strays, suggestion=f"{USE_THE_PLAN}, and keep the sum in float32")
    assert "Keep the sum in float32 [train.py:3]" in actions(replace(report, findings=(more,)))[1:]
    screened = replace(report, verification=replace(report.verification, verdict="screened"))
    assert "Use the plan instead of the script's own mixed precision [train.py:3]" in actions(screened)


def test_seeds_are_not_asked_for_where_no_number_of_them_would_decide():
    report = report_samples.passing()
    doubt = replace(report.verification, verdict="inconclusive", cause="noise", margin=0.01, seeds=tuple(range(8)))
    for reach, asked in ((0.02, True), (0.9, False)):
        scattered = replace(doubt, difference=Difference(0.0, -reach, reach))
        text = " ".join(actions(replace(report, verification=scattered)))
        assert ("--seeds" in text) is asked
        assert ("--seeds" in what_decides(replace(report, verification=scattered))) is asked


def test_where_seeds_would_not_do_the_runs_own_scatter_is_told():
    report = report_samples.passing()
    curves = {"reference": (0.0, 0.0), "reference-perturbed": (0.3, 0.4), "candidate-1": (0.5, -1.2)}
    trials = tuple(
        Trial(seed, label, (2.0, 10 + 10 * off, 10 + 10 * off), 0, scale=10.0)
        for label, ends in curves.items()
        for seed, off in enumerate(ends)
    )
    doubt = replace(
        report.verification,
        verdict="inconclusive",
        cause="noise",
        margin=0.01,
        seeds=(0, 1),
        trials=trials,
        compared=(2, 3),
        difference=Difference(-0.35, -9.0, 8.3),
    )
    scattered = replace(report, verification=doubt)
    text = headline(scattered).details[0]
    assert "Float32 ends 35.4% away from itself" in text
    assert "the plan ends 91.9% away" in text
    alone = replace(doubt, trials=tuple(each for each in trials if each.plan != "reference-perturbed"))
    assert "away from itself" not in headline(replace(report, verification=alone)).details[0]


@pytest.mark.parametrize("verdict", ["pass", "fail", "screened", "not_run"])
def test_float32_plan_is_not_called_low_precision(verdict):
    report = report_samples.passing()
    report = replace(report, plan=Plan(), verification=replace(report.verification, verdict=verdict))
    assert headline(report).title.startswith("STAY IN FLOAT32")
    doubted = replace(report, verification=replace(report.verification, verdict="inconclusive", cause="noise"))
    assert headline(doubted).title.startswith("STAY IN FLOAT32")
    stopped = replace(doubted, verification=replace(doubted.verification, cause="interrupted"))
    assert headline(stopped).title.startswith("NOT DECIDED")
    assert "precaudit.apply" not in render_terminal(report)


def in_float64(report):
    tensors = [tuple(replace(tensor, dtype="float64") for tensor in layer.tensors) for layer in report.layers]
    return replace(
        report,
        layers=tuple(replace(layer, tensors=own) for layer, own in zip(report.layers, tensors, strict=True)),
    )


def test_a_float64_script_is_told_what_it_trains_in():
    report = in_float64(report_samples.passing())
    alone = replace(report, plan=Plan())
    assert headline(alone).title.startswith("STAY IN FLOAT64")
    assert "float64 is the fastest" in actions(alone)[0]
    verification = replace(report.verification, verdict="inconclusive", cause="unchanged")
    untouched = replace(report, verification=verification)
    assert "autocast leaves alone" in headline(untouched).details[0]
    assert actions(untouched)[0].startswith("Build the model and its data in float32 first")


@pytest.mark.parametrize(
    ("plan", "own", "rules", "kept"),
    [
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [], True),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [("PA201", "warning")], True),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [("PA503", "note")], True),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [("PA306", "warning")], False),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [("PA501", "error")], False),
        (Plan("bfloat16", {"a": "bfloat16"}), "float16", [], False),
        (Plan("bfloat16", {"a": "bfloat16", "b": "tf32"}), "bfloat16", [], False),
        (Plan("bfloat16", {"a": "bfloat16"}), None, [], False),
    ],
)
def test_script_equal_to_the_plan_keeps_its_precision_unless_at_fault(plan, own, rules, kept):
    report = report_samples.passing()
    found = tuple(report_samples.finding(rule=rule, severity=grave) for rule, grave in rules)
    report = replace(report, plan=plan, job={**report.job, "baseline": {"autocast": own}}, findings=found)
    assert actions(report)[0].startswith("Keep what you have") is kept
    assert pasting.paste_lines(report)[0].startswith("# not needed") is kept


@pytest.mark.parametrize(
    ("performance", "said"),
    [
        ({}, "Train with the plan: paste"),
        ({"speedup": {"plan": 2.0}}, "Train with the plan: paste"),
        ({"speedup": {"plan": 1.0}}, "You can train with the plan, though no gain in speed is measured: paste"),
        (
            {"predicted_step_seconds": {"float32": 1.0, "plan": 1.0}, "predicted_for": "H100"},
            "You can train with the plan, though no gain in speed is expected: paste",
        ),
    ],
)
def test_a_plan_that_gains_nothing_is_allowed_and_not_advised(performance, said):
    report = replace(report_samples.passing(), findings=(), performance=performance)
    assert actions(report)[0].startswith(said)


@pytest.mark.parametrize(("off", "kept"), [(0.0, True), (0.001, True), (0.01, False), (-0.01, False)])
def test_script_with_a_larger_autocast_region_does_not_keep_it(off, kept):
    """It has the plan's format, and puts more into it than modules: its loss, say."""
    report = report_samples.passing()
    trials = [replace(trial, scale=1.0 if trial.plan == "reference" else None) for trial in report.verification.trials]
    first = trials[0]
    trials.append(replace(first, plan="as-written", scale=None, losses=tuple(loss + off for loss in first.losses)))
    verification = replace(report.verification, trials=tuple(trials), compared=(31, 40), margin=0.0025)
    job = {**report.job, "baseline": {"autocast": "bfloat16"}}
    plan = Plan("bfloat16", {"a": "bfloat16"})
    report = replace(report, plan=plan, job=job, findings=(), verification=verification)
    action = actions(report)[0]
    assert action.startswith("Keep what you have" if kept else "Train with the plan")
    assert kept or action.endswith(f"its own autocast ended {'+' if off > 0 else '-'}1.00% from float32.")
    astray = replace(first, plan="candidate-1", losses=tuple(loss - 0.02 for loss in first.losses))
    scattered = replace(verification, trials=(*trials, astray))
    assert actions(replace(report, verification=scattered))[0].startswith("Keep what you have")


@pytest.mark.parametrize(("steps", "said"), [(0, "Update the weights"), (3, "Let the script train longer")])
def test_gradients_that_no_step_used_are_told_from_too_little_training(steps, said):
    report = report_samples.passing()
    verification = Verification("inconclusive", "emulated", cause="float32", steps=steps)
    report = replace(report, verification=verification, findings=(), job={**report.job, "stopped": "ended"})
    assert actions(report)[0].startswith(said)


def test_common_remedy_is_stated_once():
    report = report_samples.passing()
    found = [report_samples.finding(fqn=f"layers.{i}.norm", suggestion="keep float32 weights") for i in range(40)]
    steps = actions(replace(report, findings=tuple(found)))
    assert len(steps) == 2
    assert steps[1].startswith("Keep float32 weights [layers.0-39.norm (40 modules)")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/venv/lib/python3.12/site-packages/transformers/models/t5.py", "transformers/models/t5.py:7"),
        ("/home/me/train.py", "/home/me/train.py:7"),
    ],
)
def test_files_of_libraries_go_by_their_import_names(path, shown):
    found = report_samples.finding(fqn="a", op="linear", location=Location(path, 7))
    assert place(found) == f"a, linear, {shown}"


@pytest.mark.parametrize("stopped", sorted(unfinished.CUT_SHORT))
def test_interrupted_run_is_distinguished_from_one_without_training(stopped):
    report = replace(report_samples.empty(), job={"stopped": stopped}, verification=Verification())
    text = render(report, "markdown")
    assert "NOTHING MEASURED" in text
    assert "before its first step" in text
    assert "None: nothing was measured." in text


def test_an_audit_in_an_own_loop_is_not_told_of_options_that_nobody_gave():
    report = replace(report_samples.passing(), job={"kind": "audit", "audited_steps": 9}, verification=Verification())
    assert actions(report)[0] == "Prove the plan: let precaudit profile train with it."


@pytest.mark.parametrize(("seeds", "words"), [((4,), "with the same seed"), ((4, 5), "paired by seed over 2 seeds")])
def test_runs_of_one_seed_are_not_paired_over_seeds(seeds, words):
    base = report_samples.passing()
    report = replace(base, verification=replace(base.verification, seeds=seeds))
    assert f"Evidence: 6 training runs, {words}, 40 optimizer steps each" in render(report, "markdown")


def test_a_tensor_with_values_that_are_not_finite_has_no_largest_magnitude():
    base = report_samples.layer("fc")
    bad = replace(base.tensors[0], stats=replace(base.tensors[0].stats, amax=0.0, numel=10_001, nonfinite=1))
    (output, gradient, *_) = ranges.rows([replace(base, tensors=(bad, *base.tensors[1:]))], [], "!")
    assert output[:3] == ["fc", "output", "inf/nan"]
    assert float(gradient[2]) > 0


def test_an_audit_without_memory_is_not_told_to_mend_the_script():
    report = replace(report_samples.empty(), job={"stopped": "unroomed", "steps": 3}, verification=Verification())
    assert headline(report).title == "NOTHING MEASURED: memory ran out after 3 steps"
    assert actions(report)[0].startswith("Profile again with a smaller batch, or more memory")


def test_in_a_terminal_a_report_of_nothing_is_only_why_and_what_to_do():
    report = replace(report_samples.empty(), job={"stopped": "failed"}, verification=Verification())
    text = render_terminal(report)
    assert len(text.splitlines()) <= 10, text
    for said in ("NOTHING MEASURED: the script failed", "Mend the script", "Next, after the fixes: precaudit profile"):
        assert said in text
    assert "Loss scale" in render_terminal(replace(report, findings=(report_samples.finding(),)))


@pytest.mark.parametrize("stopped", sorted(unfinished.CUT_SHORT.keys() - {"unroomed"}))
@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_an_audit_that_was_cut_short_recommends_nothing(stopped, format):
    report = report_samples.passing()
    verification = Verification(reason="ValueError: wrong labels")
    report = replace(report, job={"stopped": stopped, "steps": 3}, plan=Plan(), verification=verification)
    text = " ".join(render(report, format).split())
    assert headline(report).title.startswith("CUT SHORT: ")
    assert "after 3 steps; what was measured until then is below" in text
    assert "ValueError: wrong labels" in text
    assert "profile again" in actions(report)[0].lower()
    for wrong in ("STAY IN", "Change nothing", "No module was seen", "no rule found anything wrong.", "memory ran"):
        assert wrong not in text.partition("<script")[0]


def test_a_script_that_raises_under_the_plan_is_not_said_to_learn_less():
    base = report_samples.passing()
    proof = replace(base.verification, verdict="fail", cause="raised", reason="the script stopped at step 0: no kernel")
    head = headline(replace(base, verification=proof))
    assert head.title.startswith("NOT VERIFIED: the script fails under float16, not in float32")
    assert not any("learn" in line for line in head.details[:1])


@pytest.mark.parametrize("verdict", ["inconclusive", "fail", "not_run"])
def test_failure_of_float32_comes_first(verdict):
    base = report_samples.passing()
    broken = report_samples.finding("PA603", fqn=None, op=None, location=None, suggestion="repair float32 first")
    report = replace(base, findings=(broken,), verification=replace(base.verification, verdict=verdict))
    assert headline(report).title.startswith("REPAIR FLOAT32 FIRST")
    assert actions(report)[0] == "Repair float32 first"
    assert "precaudit.apply" not in render_terminal(report)


@pytest.mark.parametrize("verdict", ["inconclusive", "fail", "not_run"])
def test_a_page_on_a_float32_that_needs_repair_tells_of_no_plan(verdict):
    """What float32 must be repaired for is all that holds: no scale, no gate, and no format settles a finding."""
    base = report_samples.failing()
    broken = report_samples.finding("PA603", fqn=None, op=None, location=None, suggestion="mend the data")
    v = replace(base.verification, verdict=verdict, reason="verification was switched off (--no-verify)")
    report = replace(base, findings=(broken, *base.findings), verification=v)
    page = render_html(report).partition("<script")[0]
    assert ">Repair float32<" in page
    for told in (render_terminal(report), render_markdown(report), page, summary_html(report)):
        text = " ".join(told.replace("&#61;", "=").split())
        assert "REPAIR FLOAT32 FIRST" in text
        assert "float32 itself must be repaired first" in text
        wrong = "switched off", "settled by the plan", "Window:", "Dynamic:", "Emulated:", "FAILED", "Round 1"
        assert [each for each in wrong if each in text] == []
    assert {found.rule for found in results(report)} & {"PA002"} == set()


def test_an_audit_of_no_step_says_so():
    report = report_samples.passing()
    verification = Verification(reason="no step of this model was seen")
    report = replace(report, job={"kind": "audit", "audited_steps": 0}, plan=Plan(), verification=verification)
    assert headline(report).title == "NOTHING MEASURED: no step of this model was seen"
    assert "precaudit.audit" in actions(report)[0]


def test_exceptions_whose_reasons_differ_in_figures_share_a_line():
    because = {"a": "reaches 7e4, over float16's maximum", "b": "reaches 9e9, over float16's maximum", "c": "2 alias"}
    groups = planned.exceptions(Plan("float16", dict.fromkeys("abc", "float32"), because=because))
    assert [(group.why, group.names) for group in groups] == [
        ("reaches 7e4, over float16's maximum; the others likewise", ("a", "b")),
        ("2 alias", ("c",)),
    ]


def test_repairs_of_a_round_whose_reasons_differ_in_figures_share_a_line():
    made = [Repair(f"blocks.{i}", "float16", "float32", f"explains {i + 70}% of the error") for i in range(20)]
    made += [Repair("head", "float16", "float32", "raised", round=2), Repair("neck", "float16", "bfloat16", "raised")]
    report = report_samples.passing()
    assert planned.repairs(replace(report, verification=replace(report.verification, repairs=tuple(made)))) == [
        "Round 1: blocks.0-19 from float16 to float32: explains 70% of the error; the others likewise",
        "Round 2: head from float16 to float32: raised",
        "Round 1: neck from float16 to bfloat16: raised",
    ]


def test_the_root_module_has_a_name_everywhere():
    repair = Repair("", "float16", "float32", "raised", "div")
    report = replace(report_samples.failing(), plan=Plan("float16", {"": "float32"}, (OpFormat("", "div", "float32"),)))
    report = replace(report, verification=replace(report.verification, repairs=(repair,)))
    assert planned.repairs(report) == ["Round 1: (the model itself):div from float16 to float32: raised"]
    assert planned.exceptions(report.plan)[0].names == ("(the model itself)", "(the model itself):div")


def test_failed_plan_settles_no_findings():
    """It is not to be used."""
    report = report_samples.failing()
    found = report_samples.finding(fqn="a", evidence={"formats": "float16"})
    plan = Plan("bfloat16", {"a": "bfloat16"})
    told = {
        verdict: actions(
            replace(report, plan=plan, findings=(found,), verification=replace(report.verification, verdict=verdict))
        )[-1]
        for verdict in ("pass", "inconclusive", "fail")
    }
    assert told["pass"].startswith("Nothing else to do for 1 finding")
    assert told["inconclusive"].startswith("No change is needed for 1 finding")
    assert "suits" not in told["fail"]


def test_findings_settled_by_a_wider_format_need_no_action():
    report = report_samples.passing()
    kept = report_samples.finding(fqn="blocks.0.ln1", op="layer_norm", evidence={"formats": "bfloat16"})
    left = report_samples.finding(fqn="blocks.0.attn.qkv")
    report = replace(report, findings=(kept, left))
    steps = actions(report)
    assert len(steps) == 3
    assert "blocks.0.attn.qkv" in steps[1]
    assert steps[2].startswith("Nothing else to do for 1 finding")
    assert counts(report) == ["2 errors", "1 of them settled by the plan"]
    assert counts(replace(report, findings=(kept,))) == ["1 error", "settled by the plan"]
    failed = replace(report, verification=replace(report.verification, verdict="fail"))
    assert not any("Nothing else" in step for step in actions(failed))
    assert counts(failed) == ["2 errors"]


def test_narrow_module_in_a_float32_plan_is_open():
    plan = Plan("float32", {"a": "bfloat16", "b": "float32"}, (OpFormat("a", "exp", "float32"),))

    def is_settled(**where):
        return settled(plan, report_samples.finding(evidence={"formats": "bfloat16"}, **where))

    assert not is_settled(fqn="a", op="linear")
    assert is_settled(fqn="a", op="exp")
    assert is_settled(fqn="b", op="linear")
    assert not is_settled(fqn="elsewhere")
    assert not is_settled(fqn=None)


def test_a_format_that_no_module_of_the_plan_has_is_settled_for_the_whole_model():
    """An action would only say what the plan does already: use float32 instead."""
    about = {
        name: report_samples.finding("PA201", fqn=None, op=None, evidence={"formats": name})
        for name in ("float16", "bfloat16", "tf32")
    }
    plan = Plan("float32", {"a": "float32", "b": "bfloat16"}, (OpFormat("a", "mul", "tf32"),))
    assert [name for name, found in about.items() if settled(plan, found)] == ["float16"]
    assert not settled(Plan("float32", {}), about["float16"])


def test_finding_about_no_format_is_not_settled_by_formats():
    plan = Plan("bfloat16", {"a": "bfloat16", "b": "float32"})
    updates = report_samples.finding("PA301", fqn="b", op=None, suggestion="keep float32 master weights")
    assert not settled(plan, updates)
    report = replace(report_samples.passing(), plan=plan, findings=(updates,))
    assert any(step.startswith("Keep float32 master weights") for step in actions(report))


def test_a_format_that_the_plan_does_not_use_there_is_settled():
    plan = Plan("bfloat16", {"a": "bfloat16"})
    about_float16 = report_samples.finding(fqn="a", op="linear", evidence={"formats": "float16, float8_e4m3"})
    about_both = report_samples.finding(fqn="a", op="linear", evidence={"formats": "float16, bfloat16"})
    assert settled(plan, about_float16)
    assert not settled(plan, about_both)
    report = replace(report_samples.sample_report(), plan=plan, findings=(about_float16,))
    assert actions(report)[1:] == [
        "Nothing else to do for 1 finding: the plan runs those places in a format that suits them."
    ]


@pytest.mark.parametrize(
    ("rule", "severity", "said"),
    [
        ("PA501", "error", "The script as it is written does not train like float32"),
        ("PA502", "error", "The script's own low precision has errors"),
        ("PA501", "warning", ""),
        ("PA303", "warning", ""),
        ("PA101", "error", ""),
    ],
)
def test_a_verified_plan_does_not_hide_that_the_script_itself_goes_wrong(rule, severity, said):
    report = report_samples.passing()
    report = replace(report, findings=(finding(rule, severity, "it strays", USE_THE_PLAN),))
    (short,) = (line for line in headline(report).details if line.startswith("In short: you can train"))
    assert said in short
    assert ("see what to change" in short) is bool(said)


@pytest.mark.parametrize(
    ("predicted", "card", "said"),
    [
        ({"float32": 0.03, "plan": 0.02}, "H100", "was not measured here; 1.5x the speed is expected on H100."),
        ({"float32": 0.02, "plan": 0.02}, "H100", "was not measured here; no gain is expected on H100."),
        ({"float32": None, "plan": 0.02}, "H100", "was not measured here."),
        ({"float32": 0.03, "plan": 0.02}, None, "was not measured here."),
        (None, "H100", "was not measured here."),
    ],
)
def test_what_was_not_measured_is_told_with_what_is_expected(predicted, card, said):
    performance = {"predicted_step_seconds": predicted, "predicted_for": card}
    report = replace(report_samples.passing(), performance=performance)
    (short,) = (line for line in headline(report).details if line.startswith("In short"))
    assert short.endswith(said)
