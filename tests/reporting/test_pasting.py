"""The lines to paste, and the command that comes next."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import report_samples

from precaudit.model import Layer, LossScale, OpFormat, Plan
from precaudit.reporting import pasting
from precaudit.reporting.actions import actions
from precaudit.reporting.terminal import Page, render_terminal

WRITTEN = [Path("reports/train/report.json"), Path("reports/train/plan.json"), Path("reports/train/report.html")]


def test_commands_are_continued_as_a_shell_does():
    report = report_samples.passing()
    argv = ["--data", "a file with blanks", *(f"--option-{i}" for i in range(9))]
    report = replace(report, job=report.job | {"argv": argv})
    command = render_terminal(report, written=WRITTEN).split("deploy: ")[1]
    assert max(map(len, command.splitlines())) <= 80
    plan = ["--plan", "reports/train/plan.json"]
    assert shlex.split(command.replace("\\\n", "")) == ["precaudit", "check", *plan, "train.py", *argv]


@pytest.mark.parametrize(
    ("cause", "option"),
    [
        *[(cause, "--seeds") for cause in ("noise", None, "raised")],
        ("float32", "--steps"),
        *[(cause, None) for cause in ("unchanged", "interrupted", "early")],
    ],
)
def test_next_command_has_more_seeds_or_steps(cause, option):
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, verdict="inconclusive", cause=cause))
    _, command = pasting.next_command(report)
    assert [name for part in command if (name := part.split()[0]) in ("--seeds", "--steps")] == [option] * bool(option)


def test_after_a_screening_that_saw_nothing_more_steps_come_next():
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, verdict="screened", cause="float32"))
    assert "--steps 160" in pasting.next_command(report)[1]
    assert actions(report)[0].startswith("Profile again with more --steps")
    seen = replace(report, verification=replace(report.verification, cause=None))
    assert not any("--steps" in part for part in pasting.next_command(seen)[1])
    assert "without --quick" in actions(seen)[0]


def test_an_option_and_its_value_stay_on_one_line():
    report = report_samples.passing()
    for length in range(80):
        name = f"{'n' * length}.py"
        doubt = replace(report.verification, verdict="inconclusive", cause="noise")
        text = render_terminal(replace(report, job=report.job | {"script": name}, verification=doubt))
        assert "--seeds 8 " in text[text.index("Next:") :]
    page = Page()
    for length in range(80):
        page.text(f"{'n' * length} profile again with --seeds 8.")
    assert str(page).count("--seeds 8.") == 80


@pytest.mark.parametrize(
    ("stopped", "when"), [("interrupted", "Next:"), ("failed", "Next, after the fixes:"), ("ended", "Next:")]
)
def test_after_an_interruption_there_is_nothing_to_fix(stopped, when):
    report = report_samples.passing()
    doubt = replace(report.verification, verdict="not_run")
    assert pasting.next_command(replace(report, job=report.job | {"stopped": stopped}, verification=doubt))[0] == when


@pytest.mark.parametrize("job", [{"launcher": "torchrun"}, {"stopped": "unlaunched"}])
@pytest.mark.parametrize("verdict", ["pass", "not_run"])
def test_the_next_command_starts_a_script_by_the_launcher_that_it_needs(job, verdict):
    report = report_samples.passing()
    report = replace(report, job=report.job | job, verification=replace(report.verification, verdict=verdict))
    assert pasting.next_command(report)[1][0] == "torchrun --nproc_per_node 1 -m precaudit"
    assert pasting.next_command(replace(report, job={}))[1][0] == "precaudit"


def test_the_next_command_is_for_the_same_folder_with_the_same_options():
    report = report_samples.passing()
    job = {**report.job, "options": {"--formats": "float16", "--seeds": "2"}}
    doubt = replace(report.verification, verdict="inconclusive", cause="noise")
    _, command = pasting.next_command(replace(report, job=job, verification=doubt), Path("my runs/plan.json"))
    options = ["--out 'my runs'", "--formats float16", "--seeds 8"]
    assert command[: 3 + len(options)] == ["precaudit", "profile", "--force", *options]
    _, command = pasting.next_command(replace(report, verification=doubt), Path("reports/train/plan.json"))
    assert not any("--out" in part for part in command)


@pytest.mark.parametrize("verdict", ["pass", "fail", "not_run"])
def test_next_command_without_a_script(verdict):
    """A loop of somebody's own is called after its model, and functions after one of them."""
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, verdict=verdict))
    for kind, name in (("audit", "Sequential"), ("model_file", "build_model")):
        job = {"kind": kind, "script": name}
        assert pasting.next_command(replace(report, job=job))[1][-1] == "SCRIPT"
    job = {"kind": "model_file", "script": "model.py"}
    assert pasting.next_command(replace(report, job=job))[1][-1] == "model.py"


def test_a_script_whose_name_begins_with_a_dash_is_no_option_of_the_next_command():
    report = report_samples.passing()
    for kind, name, given in (("script", "-train.py", ["./-train.py"]), ("module", "-odd", ["-m", "-odd"])):
        job = {"kind": kind, "script": name}
        assert pasting.next_command(replace(report, job=job))[1][3:] == given


def test_where_torchscript_compiles_modules_the_lines_say_how_to_run():
    report = report_samples.passing()
    assert not any("PYTORCH_JIT" in line for line in pasting.paste_lines(report))
    scripted = {"scripted": {"path": "train.py", "line": 3}}
    lines = pasting.paste_lines(replace(report, job={**report.job, "baseline": scripted}))
    assert lines[0].endswith("PYTORCH_JIT=0")
    compile("\n".join(lines), "pasted", "exec")


@pytest.mark.parametrize("mine", [False, True])
def test_where_a_library_calls_backward_no_scaler_of_ones_own_is_asked_for(mine):
    places = ["/venv/lib/python3.11/site-packages/transformers/trainer.py:3800", *["train.py:7"] * mine]
    report = report_samples.passing()
    lines = pasting.paste_lines(replace(report, job={**report.job, "backward_at": places}))
    assert ("scaler = plan.grad_scaler()" in lines) is mine
    assert any("transformers/trainer.py:3800" in line and "venv" not in line for line in lines) is not mine
    module = {"kind": "module", "script": "transformers.train", "backward_at": places}
    assert "scaler = plan.grad_scaler()" in pasting.paste_lines(replace(report, job={**report.job, **module}))
    compile("\n".join(lines), "pasted", "exec")


def test_lines_to_paste_run_as_python():
    text = render_terminal(report_samples.passing(), written=WRITTEN)
    assert '  plan = precaudit.load_plan("reports/train/plan.json")' in text.splitlines()
    lines = [line.strip() for line in text.split("model is built\n")[1].split("\n\n")[0].splitlines()]
    compile("\n".join(lines), "pasted", "exec")
    assert lines[3] == "scaler = plan.grad_scaler()"
    assert "unscale_(optimizer), before gradients are clipped" in lines[5]  # which a profile's loss scale needs not
    assert all(line.startswith("#") for line in lines[4:])


@pytest.mark.parametrize(
    ("names", "pasted"),
    [
        (("net", "net"), ["net"]),
        (("", ""), ["model"]),
        (("generator", "critic"), ["generator", "critic"]),
        (("generator", "exit() or net"), ["model"]),
    ],
)
def test_every_model_of_the_plan_has_a_line(names, pasted):
    layers = tuple(Layer(f"{name}.{i}", "Linear", 8, 1, (), model=name) for i, name in enumerate(names))
    plan = Plan(default="bfloat16", modules={layer.fqn: "bfloat16" for layer in layers})
    lines = pasting.paste_lines(replace(report_samples.passing(), layers=layers, plan=plan))
    several = {name: f', name="{name}"' * (len(pasted) > 1) for name in pasted}
    applied = [line for line in lines if line.startswith("precaudit.apply")]
    assert applied == [f"precaudit.apply({name}, plan{more})" for name, more in several.items()]
    assert sum("# write what your code calls" in line for line in lines) == (pasted != ["model"])


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "screened", "not_run"])
def test_pasted_lines_say_of_a_plan_that_it_is_not_verified(verdict):
    report = report_samples.passing()
    lines = pasting.paste_lines(replace(report, verification=replace(report.verification, verdict=verdict)))
    assert ("# this plan is not verified" in lines) is (verdict != "pass")


def test_plan_equal_to_plain_autocast_is_shown_as_torch_code():
    report = report_samples.passing()
    uniform = Plan("bfloat16", dict.fromkeys(report.plan.modules, "bfloat16"))
    assert any('torch.autocast("cuda", torch.bfloat16)' in line for line in lines_of(report, uniform))
    fqn = next(iter(uniform.modules))
    for other in (
        replace(uniform, modules={**uniform.modules, fqn: "float32"}),
        replace(uniform, ops=(OpFormat(fqn, "softmax", "float32"),)),
        replace(uniform, loss_scale=LossScale("dynamic", 2.0**16)),
    ):
        assert not any("torch.autocast" in line for line in lines_of(report, other))


def lines_of(report, plan):
    return pasting.paste_lines(replace(report, plan=plan, job={**report.job, "baseline": {}}))


def test_modules_are_named_as_they_were_run():
    report = report_samples.passing()
    report = replace(report, job=report.job | {"kind": "module", "script": "package.train"})
    assert render_terminal(report).startswith("precaudit 0.1.0: -m package.train --lr 0.1\n")


def test_no_scaler_is_pasted_where_none_is_needed():
    report = report_samples.passing()
    assert "grad_scaler" not in render_terminal(replace(report, plan=report_samples.failing().plan))


def test_lines_to_paste_fit_the_terminal():
    report = report_samples.passing()
    baseline = {"scripted": {}, "autocast": "bfloat16"}
    places = ["/venv/lib/python3.11/site-packages/transformers/trainer.py:3800"]
    report = replace(report, job={**report.job, "baseline": baseline, "backward_at": places})
    assert len(pasting.paste_lines(report)) == 8
    assert max(map(len, render_terminal(report).splitlines())) <= 80


@pytest.mark.parametrize(("baseline", "told"), [({"autocast": "bfloat16"}, True), ({"low": []}, False)])
def test_plan_replaces_the_scripts_mixed_precision(baseline, told):
    report = report_samples.passing()
    text = render_terminal(replace(report, job=report.job | {"baseline": baseline}))
    assert ("in place of the script's own" in text) is told


@pytest.mark.parametrize(("baseline", "told"), [({"casts": []}, True), ({"autocast": "bfloat16"}, False)])
def test_pasted_lines_exclude_the_scripts_own_casts(baseline, told):
    report = report_samples.passing()
    text = render_terminal(replace(report, job=report.job | {"baseline": baseline}))
    assert ("# without the script's own casts to low precision" in text) is told


def test_library_mixed_precision_has_one_instruction():
    report = report_samples.passing()
    job = {
        **report.job,
        "baseline": {"autocast": "bfloat16"},
        "backward_at": ["/x/site-packages/lightning/module.py:7"],
    }
    lines = pasting.paste_lines(replace(report, job=job))
    assert any("which scales the loss" in line for line in lines)
    assert any("was float32 in the trials" in line for line in lines)
    assert not any("in place of the script's own" in line for line in lines)


@pytest.mark.parametrize("own", [None, 2.0**16])
def test_a_loss_scale_by_hand_is_told_to_be_in_the_gradients_and_beside_the_plans(own):
    """It stays on in every run, as no one but the script can take it out again."""
    report = report_samples.passing()
    assert report.plan.loss_scale.mode != "none"
    text = " ".join(render_terminal(replace(report, job=report.job | {"baseline": {"scaled_by_hand": own}})).split())
    assert ("before any loss scale" in text) is (own is None)
    assert ("is 2^16 = 65,536 at first and stays on in every run, and the plan's multiplies it" in text) is bool(own)
    assert ("# with the loss scale that the script keeps by hand, as in the trials" in text) is bool(own)
